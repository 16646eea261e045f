#!/usr/bin/env python3
"""bigquery.py DATA PORT ADDRESS PROJECT: an emulator of BigQuery, local-bigquery, with REST at PORT and gRPC at the next one.

What is mended here:
- Tables are DuckDB's own rather than DuckLake's, whose every look at a table asks another database: what took 100 ms takes 20.
- A job's state is written down once it is done, not three times, and results of queries are dropped when many more have come.
- Requests that are compressed are read, as the service does.
- A stream that two ask to commit at the same time is committed once, as the service does.
- Documents and bytes are read within arrays as they are by themselves: they were left as the texts that they travel as.
- CREATE OR REPLACE TABLE with columns AS SELECT empties a table and fills it at once: readers found it empty in between.
- A MERGE inside of a transaction would begin another, which DuckDB 1.5 punishes by giving up the first one. (DuckDB 2, for which the emulator is written, only
  refuses; but its extensions cannot be had from a package registry.)
"""
import collections
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

from local_bigquery.engine import database, types  # noqa: E402


def attach(connection, project):
    connection.execute(f"ATTACH IF NOT EXISTS '{settings.data_dir / project}.db' AS {database.quote(project)}")
    database._attached.add(project)


catalog_objects = database.objects


def objects(project, dataset, table=None):
    """Of one table its name, kind and rows, these as they are counted."""
    if not dataset or table is None:
        return catalog_objects(project, dataset, table)
    try:
        [(rows,)] = database.fetch(f"SELECT count(*) FROM {database.quote(project, dataset, table)}")
    except duckdb.CatalogException:
        return []
    views = "SELECT 1 FROM duckdb_views() WHERE database_name = ? AND schema_name = ? AND view_name = ? AND NOT internal"
    is_view = dataset != "_results" and database.fetch(views, [project, dataset, table])
    return [(table, "VIEW", 0) if is_view else (table, "TABLE", rows)]


database._attach, database.objects, database.projects = attach, objects, lambda: sorted(database._attached)
from local_bigquery.catalog import names, tables  # noqa: E402
from local_bigquery.errors import not_found  # noqa: E402


def columns(*table):
    try:
        described = database.fetch(f"DESCRIBE {tables.name(*table)}")
        with database.cursor() as cursor:
            relation = cursor.sql(f"SELECT * FROM {tables.name(*table)} LIMIT 0")
            kinds = dict(zip(relation.columns, relation.types))
    except duckdb.CatalogException:
        raise not_found("Table", names.label(*table)) from None
    shown = [d for d in described if d[0] != tables.INGESTION_TIME or table[1] == tables.RESULTS]
    return [types.field(d[0], kinds[d[0]], d[2] == "NO") for d in shown]


tables.columns = columns
from local_bigquery.catalog import tabledata  # noqa: E402

travels_as, selected = tabledata._spec_type, tabledata._select
of_text = {"JSON[]": "CAST(item AS JSON)", "BLOB[]": "from_base64(item)"}


def select(column, kind):
    item = of_text.get(str(kind))
    return f"list_transform(r.{column}, lambda item: {item})" if item else selected(column, kind)


tabledata._spec_type = lambda kind: "VARCHAR[]" if str(kind) in of_text else travels_as(kind)
tabledata._select = select
from local_bigquery import app as emulator  # noqa: E402
from local_bigquery.grpc import write  # noqa: E402
from local_bigquery.jobs import merge, query, store  # noqa: E402
from sqlglot import exp  # noqa: E402


class Jobs:
    """Those that are not done yet are known here only."""

    KEPT_RESULTS = 500

    def __init__(self):
        self.lock, self.open, self.results = threading.Lock(), {}, collections.deque()
        self.save_done, self.load_done, self.list_done = store.save, store.load, store.list_

    def save(self, job):
        key = (job.jobReference.projectId, job.jobReference.jobId)
        if job.status.state != "DONE":
            with self.lock:
                self.open[key] = job
            return job
        self.save_done(job)
        with self.lock:
            self.open.pop(key, None)
            self.results.append(key)
            old = self.results.popleft() if len(self.results) > self.KEPT_RESULTS else None
        if old:
            database.execute(f"DROP TABLE IF EXISTS {tables.name(old[0], tables.RESULTS, old[1])}")
        return job

    def load(self, *key):
        with self.lock:
            job = self.open.get(key)
        return job or self.load_done(*key)

    def list(self, project, states=None, parent=None, least=None, most=None):
        with self.lock:
            listed = [job for key, job in self.open.items() if key[0] == project and parent is None and (not states or job.status.state in states)]
        return listed + self.list_done(project, states, parent, least, most)


jobs = Jobs()
store.save, store.load, store.list_ = jobs.save, jobs.load, jobs.list

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


class AtOnce:
    """A cursor whose first statements, so many, are one transaction."""

    def __init__(self, cursor, statements):
        self._cursor, self._all, self._done = cursor, statements, 0

    def __getattr__(self, name):
        return getattr(self._cursor, name)

    def execute(self, *statement):
        if self._done == self._all:
            return self._cursor.execute(*statement)
        if self._done == 0:
            self._cursor.execute("BEGIN")
        rows = Rows(self._cursor.execute(*statement).fetchall())
        self._done += 1
        if self._done == self._all:
            self._cursor.execute("COMMIT")
        return rows

    def end(self):
        if 0 < self._done < self._all:
            self._cursor.execute("ROLLBACK")


class Rows(list):
    """Of a statement whose cursor has done something else since."""

    def fetchone(self):
        return self[0] if self else None


def at_once(run):
    """CREATE OR REPLACE TABLE with columns AS SELECT is run as two statements."""

    def whole(cursor, tree, context, destination, config, dry_run, isolated):
        fills = isinstance(tree, exp.Create) and len(query.ddl.split(tree)) > 1
        # A table that is new to other cursors is not found by the second statement; nobody reads it yet either.
        if not fills or dry_run or id(cursor) in transactions or not tables.exists(*query._target(tree, context)):
            return run(cursor, tree, context, destination, config, dry_run, isolated)
        cursor = AtOnce(cursor, len(query.ddl.split(tree)))
        try:
            return run(cursor, tree, context, destination, config, dry_run, isolated)
        finally:
            cursor.end()

    return whole


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

query._run = following(at_once(query._run))
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
