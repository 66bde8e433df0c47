"""Outlines of masks and borders of cells over a picture."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Lines:
    """Lines over a picture, on the renderer alone: axes take longer to make than all that is drawn here."""

    def __init__(self, background: "Image.Image", shape: tuple[int, ...]) -> None:
        """`shape`: rows and columns that the picture stands for; lines are given in these."""
        import numpy as np
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.transforms import Affine2D, IdentityTransform

        side = background.width
        self.renderer, self.shape = RendererAgg(side, side, 100), shape
        self.identity = IdentityTransform()
        # The middle of the first pixel is at (0, 0), and up is up.
        self.place = Affine2D().translate(0.5, 0.5).scale(side / shape[1], -side / shape[0]).translate(0, side)
        self.renderer.draw_image(self.renderer.new_gc(), 0, 0, np.asarray(background.convert("RGBA"))[::-1])

    def outline(self, mask: "np.ndarray", colour: str, width: float, *, shadow: float, tinted: bool) -> None:
        """The border of a mask, in points, over a shadow; its inside tinted too where asked for."""
        import numpy as np
        from contourpy import contour_generator
        from matplotlib.colors import to_rgb
        from matplotlib.path import Path

        padded = np.pad(mask.astype(np.float32), 1)  # so that a mask at the border closes too
        rows, columns = (np.arange(-1, length + 1) for length in mask.shape)
        lines = contour_generator(columns, rows, padded).lines(0.5)
        curves = [Path(np.asarray(line), closed=True) for line in lines]
        whole = Path.make_compound_path(*curves)
        if tinted:
            self._stroke(whole, colour, 0, inside=(*to_rgb(colour), 0.3))
        self._stroke(whole, "#00000099", width + shadow)
        self._stroke(whole, colour, width)

    def borders(self, cells: tuple[int, int], width: float) -> None:
        """Dotted lines between as many rows and columns of cells."""
        from matplotlib.path import Path

        last = [length - 0.5 for length in self.shape]
        for axis, count in enumerate(cells):
            for border in range(1, count):
                at = border * self.shape[axis] / count - 0.5
                ends = [(-0.5, at), (last[1], at)] if axis == 0 else [(at, -0.5), (at, last[0])]
                self._stroke(Path(ends), "#ffffffcc", width, dotted=True)

    def _stroke(
        self, curve: Any, colour: str, width: float, *, inside: tuple[float, ...] | None = None, dotted: bool = False
    ) -> None:
        from matplotlib.colors import to_rgba

        pen = self.renderer.new_gc()
        pen.set_foreground(to_rgba(colour), isRGBA=True)
        if inside is not None:
            pen.set_alpha(inside[3])
        pen.set_linewidth(width)
        if dotted:
            pen.set_dashes(0, [width, 3 * width])
            pen.set_snap(True)
        self.renderer.draw_path(pen, self.place.transform_path(curve), self.identity, inside)

    def image(self) -> "Image.Image":
        """What was drawn so far, as RGB."""
        import numpy as np
        from PIL import Image

        return Image.fromarray(np.asarray(self.renderer.buffer_rgba())[..., :3])
