"""What masking the top heads of a ranking does, beside random and idle heads."""
