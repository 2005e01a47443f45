# SPDX-License-Identifier: Apache-2.0
"""Pictures to pixels, and which feature rows of a picture the language model will see. numpy and Pillow only.

Begin with ``processor.ImageProcessor``; ``layout`` counts visual tokens without opening a picture.
"""
