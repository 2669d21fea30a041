"""Forward passes that save work, and texts cut into batches for them."""
