"""Tests of sinklens; the folders mirror the package."""
