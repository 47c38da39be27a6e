"""Cohorts of lesions: simulated ones, and a user's own."""
