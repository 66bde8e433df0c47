"""Saliency (where a model looks) and its measures against radiologists' masks."""

from trustcxr.explain import measures
from trustcxr.explain.attribution import integrated_gradients, occlusion, smooth_grad
from trustcxr.explain.baselines import centre_prior, random_map
from trustcxr.explain.cam import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from trustcxr.explain.methods import METHODS, method
