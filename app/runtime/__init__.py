"""The batch runtime: many answers, one model, one step at a time. Knows rows and frames, no HTTP and no voices."""
