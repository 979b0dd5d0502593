"""The batch runtime: many answers, one model, one step at a time. Knows rows and frames; knows no HTTP and no voices."""
