"""The census: every detector on one pass, its joins, and what they say in words."""
