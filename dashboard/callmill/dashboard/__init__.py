"""The dashboard: Flower for Callmill's workers, safe as it starts."""
