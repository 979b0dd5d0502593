"""The batch runtime: continuous batching of utterances on one model. This package does not depend on HTTP."""
