# SPDX-License-Identifier: Apache-2.0
"""Images to pixels, and which feature rows of an image the language model will see. numpy and Pillow only.

Begin with ``processor.ImageProcessor``; ``layout`` counts visual tokens without opening an image.
"""
