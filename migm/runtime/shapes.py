"""Name the axes of tensors in annotations, the same everywhere.

    b      images of a batch, or training pairs
    cb     copies * b: every image once for each guidance half that runs in the same pass, conditional ones first
    t      rows of the backbone's sequence
    r      some of these rows, or all
    l      image tokens
    k      new or chosen tokens
    q      ids of a condition, prompt tokens for instance
    n      steps of a generation
    c      channels of the features; other channels have a name that begins with c
    v      image vocabulary; outside a base file tokens are 0...v-1, and v is the mask
    heads  attention heads, of d channels each
    h w    pixels, height first

`_` is an axis of any size. Within one call, and within one object, each name stands for one size. A size in braces is
read from an argument: "{branch.copies}*b t c". A string that is also valid Python, such as a single name, begins with a
space, so that ruff does not take the name for a class. Int and Float allow any precision, Shaped allows any dtype.

Only the tests check the annotations (tests/shape_checks.py).
"""

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Tokens = Int[Tensor, "b l"]
TokenMask = Bool[Tensor, "b l"]  # True at some of the image tokens
Positions = Int[Tensor, "b k"]  # positions of image tokens
Features = Float[Tensor, "b t c"]
FeatureRows = Float[Tensor, "b r c"]
RowMask = Bool[Tensor, "b r"]  # True at some of these rows
PerImage = Int[Tensor, " b"]  # a whole number of each image, or of each training pair
Scalar = Float[Tensor, ""]
Ratio = Float[Tensor, " b"]  # share of an image's tokens that are masked: 0...1
Images = UInt8[Tensor, "b 3 h w"]
