#!/usr/bin/env python3
"""snowflake_query.py URL [SQL]: asks a stand-in for Snowflake, and prints the answer's rows, tab-separated, NULL as ∅.

Without SQL, each line of standard input is a statement."""
import gzip
import json
import sys
import urllib.request
import uuid
from urllib.parse import urlsplit

url = urlsplit(sys.argv[1])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
token = None


def post(path, body):
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token:
        headers["Authorization"] = f'Snowflake Token="{token}"'
    request = urllib.request.Request(f"http://{url.hostname}:{url.port}{path}", json.dumps(body).encode(), headers)
    with opener.open(request) as answer:
        text = answer.read()
    return json.loads(gzip.decompress(text) if text[:2] == b"\x1f\x8b" else text)


def ask(sql):
    answer = post(f"/queries/v1/query-request?requestId={uuid.uuid4()}", {"sqlText": sql})
    while answer.get("code") in ("333333", "333334"):
        with opener.open(urllib.request.Request(f"http://{url.hostname}:{url.port}{answer['data']['getResultUrl']}",
                                                headers={"Authorization": f'Snowflake Token="{token}"'})) as more:
            answer = json.loads(more.read())
    if not answer["success"]:
        sys.exit(f"{answer['code']}: {answer['message']}")
    rows = answer["data"].get("rowset") or []
    for part in answer["data"].get("chunks") or []:
        with opener.open(part["url"]) as more:
            text = more.read()
        rows += json.loads(b"[" + (gzip.decompress(text) if text[:2] == b"\x1f\x8b" else text) + b"]")
    for row in rows:
        print("\t".join("∅" if value is None else str(value) for value in row), flush=True)


login = {"LOGIN_NAME": url.username, "PASSWORD": url.password, "ACCOUNT_NAME": "testbed", "SESSION_PARAMETERS": {}}
token = post(f"/session/v1/login-request?databaseName={url.path[1:]}", {"data": login})["data"]["token"]
for sql in sys.argv[2:] or map(str.strip, sys.stdin):
    ask(sql)
