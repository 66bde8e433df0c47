"""Every name that a recipe, a table or a figure may use."""

BLACK_BOX = ("transfer", "square")  # they use no gradient of the model
# What is left to a model that must do without the disease, or without the rest (Maguolo and Nanni 2021).
VIEWS = ("lungs_blacked_out", "lungs_only", "silhouette_only", "border_only", "lungs_on_another_film")
ONE_STEP = ("fgsm", "fgsm-rs")  # attacks without a number of steps
