"""Crafts on sound: samples in, samples or container bytes out. Knows nothing of HTTP, engines or voices.

Every streaming class here is a `stages.Stage` (push, flush) or an `encoders.Encoder` (encode, flush, close), belongs to
one answer, and is used by one thread at a time; different instances may run in different threads.
"""
