#!/usr/bin/env python3
"""bigquery.py DATA PORT ADDRESS PROJECT: an emulator of BigQuery, local-bigquery, with REST at PORT and gRPC at the next one.

Two things of it are mended here:
- Requests that are compressed are read, as the service does.
- A stream that two ask to commit at the same time is committed once, as the service does.
- A MERGE inside of a transaction would begin another, which DuckDB 1.5 punishes by giving up the first one. (DuckDB 2, for which the emulator is written, only
  refuses; but its extensions cannot be had from a package registry.)
"""
import gzip
import pathlib
import sys
import threading

import duckdb
import uvicorn
from local_bigquery.settings import settings

data, port, address, project = sys.argv[1:]
settings.bigquery_host = address
settings.bigquery_port = int(port)
settings.grpc_port = int(port) + 1
settings.data_dir = pathlib.Path(data)
settings.default_project_id = project

from local_bigquery import app as emulator  # noqa: E402
from local_bigquery.grpc import write  # noqa: E402
from local_bigquery.jobs import merge, query  # noqa: E402
from sqlglot import exp  # noqa: E402


# Cursors with an open transaction, kept so that none is taken for another that is gone.
transactions = {}


class Cursor:
    """A cursor that says by itself that there is a transaction."""

    def __init__(self, cursor):
        self._cursor = cursor

    def __getattr__(self, name):
        return getattr(self._cursor, name)

    def execute(self, sql, *more):
        if sql == "BEGIN" and id(self._cursor) in transactions:
            raise duckdb.TransactionException("there is a transaction already")
        return self._cursor.execute(sql, *more)


def following(run):
    def followed(cursor, tree, *more):
        statistics = run(cursor, tree, *more)
        if isinstance(tree, exp.Transaction):
            transactions[id(cursor)] = cursor
        elif isinstance(tree, (exp.Commit, exp.Rollback)):
            transactions.pop(id(cursor), None)
        return statistics

    return followed


def mended(run):
    return lambda cursor, tree, context: run(Cursor(cursor), tree, context)


def one_by_one(commit):
    lock = threading.Lock()

    def committed(request):
        with lock:
            return commit(request)

    return committed


# Before the server takes it over.
write.commit = one_by_one(write.commit)
from local_bigquery.grpc import server  # noqa: E402

query._run = following(query._run)
merge.run = mended(merge.run)


async def app(scope, receive, send):
    headers = scope.get("headers", [])
    if scope["type"] != "http" or (b"content-encoding", b"gzip") not in headers:
        return await emulator(scope, receive, send)
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    messages = [{"type": "http.request", "body": gzip.decompress(body), "more_body": False}]

    async def unpacked():
        return messages.pop() if messages else {"type": "http.disconnect"}

    kept = [(k, v) for k, v in headers if k not in (b"content-encoding", b"content-length")]
    return await emulator({**scope, "headers": kept}, unpacked, send)


grpc, _ = server.start(address, settings.grpc_port)
uvicorn.run(app, host=address, port=settings.bigquery_port, log_level="warning")
grpc.stop(None)
