"""Settings for all processes of the tests. Python runs this file before numpy and torch are imported."""

import os
import sys
from pathlib import Path

# The parallel processes share the cores. More threads would wait for each other, and the tiny models need only one.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

# A client of httpx reads all certificates of the machine when it is created, which takes 20 ms of CPU time. No test
# needs a certificate. In a folder without certificates there is nothing to read.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# The tests start many servers. Without stored bytecode each of them compiles the app again, which takes 0.3 s of CPU
# time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
