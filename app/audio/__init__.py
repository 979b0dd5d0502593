"""Audio utilities: samples in, samples or container bytes out. Does not depend on HTTP, engines or voices.

Every streaming class is a `stages.Stage` (push, flush) or an `encoders.Encoder` (encode, flush, close). An instance
belongs to one response and is used by one thread at a time. Different instances may run in different threads.
"""
