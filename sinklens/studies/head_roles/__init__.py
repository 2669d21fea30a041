"""Roles of attention heads by several criteria, in one table, with their agreement and files to exchange them."""
