"""The batch runtime: continuous batching of utterances on one model. Does not depend on HTTP or the voice store."""
