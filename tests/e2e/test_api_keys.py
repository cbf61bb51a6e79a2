"""`metering up` with API keys: it posts nothing by itself, and its lines work once the reader has put the key in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import requests

from tests.e2e.processes import ran, until
from tests.e2e.stack import Stack
from tests.e2e.test_guide import COMES_S, SHELL, path_with_stand_ins

KEY = "a-key-for-this-test"


@pytest.mark.e2e
def test_the_lines_that_it_prints_work_with_the_key_and_nothing_does_without(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()} * read,write\n", encoding="ascii")
    (tmp_path / ".curlrc").write_text("fail-with-body\n", encoding="ascii")
    stack = Stack(tmp_path, API_KEYS_FILE=str(keys))
    try:
        stack.start()
        total = f"{stack.billing_url}/v1/tenants/tenant-123/usage/api_calls"
        assert requests.get(total, timeout=10).status_code == 401
        said = stack.output.read_text(encoding="utf-8")
        assert "no event is posted here" in said
        lines, _, pages = said.partition("Try it:")[2].strip().partition("\n\n")
        assert pages.startswith(f"or open {stack.billing_url}/ in a browser, with the key as password\n")
        page = requests.get(stack.billing_url, auth=("", KEY), timeout=10)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        post, *reads = lines.replace("\\\n", " ").splitlines()
        environment = stack.environment | {
            "KEY": KEY, "CURL_HOME": str(tmp_path), "PATH": path_with_stand_ins(tmp_path)
        }  # fmt: skip
        code, out, _ = ran([*SHELL, "-c", post], environment)
        assert (code, '"status":"accepted"' in out) == (0, True)
        until(lambda: requests.get(total, headers={"X-Api-Key": KEY}, timeout=10).ok, "the total", timeout_s=COMES_S)
        assert [ran([*SHELL, "-c", read.strip()], environment)[0] for read in reads] == [0, 0, 0]
    finally:
        stack.close()
