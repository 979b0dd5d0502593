"""The batch runtime: continuous batching of utterances on one model. It does not depend on HTTP or stored voices."""
