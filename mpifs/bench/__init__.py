"""`mpifs bench`: the product beside the limits it lives under, measured in one run."""
