"""Attention variants, one function a file, listed in `catalogue`; `decoder` trains with any of them."""
