"""`python -m app.healthcheck`: exits with status 0 if the server on this machine is healthy. Containers use this check.
It needs only the standard library, so that it starts quickly.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0


def main() -> None:
    """Request /health of the server on this machine, over https if TTS_TLS_CERT is set."""
    scheme = "https" if os.environ.get("TTS_TLS_CERT", "").strip() else "http"
    url = f"{scheme}://127.0.0.1:{os.environ.get('PORT', '').strip() or 8000}/health"
    # The certificate is not checked, because it names the server's public host and not 127.0.0.1. This is safe: the
    # request does not leave the machine.
    context = ssl._create_unverified_context() if scheme == "https" else None  # noqa: S323 # nosec B323
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context).close()  # noqa: S310 # nosec B310
    except (urllib.error.URLError, OSError) as error:
        sys.exit(f"{url} is not healthy: {error}")


if __name__ == "__main__":
    main()
