"""Statements of the stand-in for Snowflake: fakesnow executes them, and what it lacks or does otherwise than the service is here."""

import json
import os
import re
import shutil
import threading
import time
import uuid

import fakesnow.cursor
from botocore.exceptions import ClientError
from fakesnow.instance import FakeSnow

import snowflake_storage

# DuckDB has MERGE itself, with all its clauses.
fakesnow.cursor.transforms.merge = lambda expression: [expression]
database = FakeSnow(create_database_on_connect=False)
# Where the stages' files are.
stages = None

SECONDS_UNTIL_ABANDONED = 2

PART = r'(?:"(?:[^"]|"")*"|[A-Za-z_][\w$]*)'
NAME = rf"({PART}(?:\.{PART}){{0,2}})"
TEXT = r"'((?:[^'\\]|''|\\.)*)'"


def unquoted(name):
    """The parts of a name as they are stored."""
    parts = re.findall(PART, name)
    return [p[1:-1].replace('""', '"') if p.startswith('"') else p.upper() for p in parts]


def unescaped(text):
    """What a string literal stands for."""
    escapes = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f"}
    return re.sub(r"''|\\(.)", lambda m: "'" if m.group(0) == "''" else escapes.get(m.group(1), m.group(1)), text, flags=re.S)


def literals(sql):
    """Texts as DuckDB reads them, to which a backslash is a backslash."""
    return re.sub(TEXT, lambda m: "'" + unescaped(m.group(1)).replace("'", "''") + "'", sql)


UNREADABLE = "003167", "42601", "Failed to access remote file: access denied. Please check your credentials"


class Refused(Exception):
    def __init__(self, code, state, words):
        super().__init__(words)
        self.code, self.state = code, state


class Turn:
    """Whose transaction is open: one at a time."""

    def __init__(self):
        self.changed, self.owner = threading.Condition(), None

    def take(self, session):
        with self.changed:
            while self.owner not in (None, session):
                idle = time.monotonic() - self.owner.last
                if not self.owner.busy and idle > SECONDS_UNTIL_ABANDONED:
                    self.owner.roll_back()
                    break
                self.changed.wait(0.02)
            self.owner = session

    def give(self, session):
        with self.changed:
            if self.owner is session:
                self.owner = None
                self.changed.notify_all()


turn = Turn()
# What the catalog knows beside fakesnow's, by (database, schema, table).
clustering, grants, history, policies = {}, {}, {}, {}
# URLs of the external ones, None of the others.
known_stages = {}


class Session:
    def __init__(self):
        self.connection = database.connect("MO", "PUBLIC")
        self.duck = self.connection._duck_conn
        self.lock, self.last, self.busy = threading.RLock(), time.monotonic(), False
        self.in_transaction, self.temporary, self.warehouse = False, set(), "NULL"

    def roll_back(self):
        if self.in_transaction:
            self.duck.execute("ROLLBACK")
            self.in_transaction = False

    def end(self):
        with self.lock:
            self.roll_back()
            turn.give(self)

    # --- Statements ---

    def run(self, sql):
        """Names of columns and rows of texts; or, for PUT, the place."""
        with self.lock:
            self.busy, begun = True, time.monotonic()
            try:
                return self.statement(sql.strip().rstrip(";"))
            finally:
                self.busy, self.last = False, time.monotonic()
                if os.environ.get("TESTBED_TRACE"):
                    print(f"{self.last - begun:.3f} s {id(self) % 10000}: {sql[:300]}", flush=True)

    def statement(self, sql):
        first = sql.split(None, 1)[0].upper() if sql else ""
        if first in ("BEGIN", "COMMIT", "ROLLBACK"):
            return self.transaction(first)
        if first in ("SELECT", "SHOW", "LIST", "LS", "DESCRIBE", "DESC", "PUT", "CALL", "USE", "WITH"):
            return self.dispatch(sql)
        ddl = first in ("CREATE", "ALTER", "DROP", "TRUNCATE", "COMMENT", "GRANT", "REVOKE", "UNDROP")
        if ddl and self.in_transaction:
            self.transaction("COMMIT")
        if self.in_transaction:
            return self.dispatch(sql)
        turn.take(self)
        try:
            return self.dispatch(sql)
        finally:
            turn.give(self)

    def transaction(self, word):
        if word == "BEGIN":
            if not self.in_transaction:
                turn.take(self)
                self.duck.execute("BEGIN")
                self.in_transaction = True
        elif self.in_transaction:
            try:
                self.duck.execute(word)
            finally:
                self.in_transaction = False
                turn.give(self)
        return ["status"], [["Statement executed successfully."]]

    def dispatch(self, sql):
        for pattern, method in STATEMENTS:
            if match := pattern.fullmatch(sql):
                return method(self, *match.groups())
        return self.fakesnow(sql)

    def fakesnow(self, sql):
        for name in self.temporary:
            sql = sql.replace(name, "temp.main." + re.findall(PART, name)[-1])
        for function, value in (("WAREHOUSE", self.warehouse), ("ROLE", "'SYSADMIN'"), ("ORGANIZATION_NAME", "'TESTBED'"), ("ACCOUNT_NAME", "'ONE'")):
            sql = re.sub(rf"CURRENT_{function}\(\)", value, sql)
        sql = re.sub(rf"IS_ROLE_IN_SESSION\({TEXT}\)", lambda m: str("OTHER" not in m.group(1)).upper(), sql)
        cursor = self.connection.cursor()
        cursor.execute(sql, server=True)
        table = cursor._arrow_table
        if table is None:
            return [], []
        names = table.column_names
        rows = [list(row) for row in zip(*[c.to_pylist() for c in table.columns])] if table.num_rows else []
        if sql.lstrip()[:5].upper() == "MERGE" and len(names) == 1:
            names = ["number of rows updated"]
        return names, rows

    def direct(self, sql):
        """What DuckDB understands after a few words are changed: fakesnow takes thirty times as long to look at it."""
        sql = re.sub(r"\bSYSDATE\(\)", "CAST(now() AT TIME ZONE 'UTC' AS TIMESTAMP)", sql)
        sql = re.sub(r"\bTO_VARCHAR\((\"AT\")\)", r"CAST(\1 AS VARCHAR)", sql)
        sql = re.sub(r"\bFROM VALUES (.*)\) AS s ON ", r"FROM (VALUES \1) AS v(column1, column2, column3, column4)) AS s ON ", sql, flags=re.S)
        cursor = self.duck.execute(literals(sql))
        first = sql.split(None, 1)[0].upper()
        if first == "SELECT":
            return [c[0] for c in cursor.description], [list(row) for row in cursor.fetchall()]
        done = {"UPDATE": "updated", "DELETE": "deleted", "INSERT": "inserted", "MERGE": "updated"}[first]
        return [f"number of rows {done}"], [[str(cursor.fetchall()[0][0])]]

    def ledger(self, sql):
        try:
            return self.direct(sql)
        except Exception as e:
            if "does not exist" in str(e):
                raise Refused("002003", "02000", "SQL compilation error:\nTable does not exist or not authorized.") from None
            raise

    def tables(self, columns, name, condition):
        """INFORMATION_SCHEMA.TABLES, of which fakesnow knows neither clustering keys nor who owns what."""
        known = f"""
            SELECT schema_name AS TABLE_SCHEMA, table_name AS TABLE_NAME, 'BASE TABLE' AS TABLE_TYPE, e.comment AS COMMENT, NULL AS CLUSTERING_KEY,
              'SYSADMIN' AS TABLE_OWNER FROM duckdb_tables() LEFT JOIN _fs_global._fs_information_schema._fs_tables_ext AS e
              ON ext_table_catalog = database_name AND ext_table_schema = schema_name AND ext_table_name = table_name
              WHERE database_name = '{unquoted(name)[0]}' AND NOT temporary
            UNION ALL SELECT schema_name, view_name, 'VIEW', NULL, NULL, 'SYSADMIN' FROM duckdb_views() WHERE database_name = '{unquoted(name)[0]}' AND NOT internal"""
        if not self.duck.execute("SELECT 1 FROM duckdb_databases() WHERE database_name = ?", unquoted(name)).fetchall():
            raise Refused("002003", "02000", f"Database '{name}' does not exist or not authorized.")
        condition = re.sub(r"\bSTARTSWITH\(", "starts_with(", condition)
        if columns == "COUNT(*)":
            return ["COUNT(*)"], [list(row) for row in self.duck.execute(f"SELECT COUNT(*) FROM ({known}) WHERE {literals(condition)}").fetchall()]
        cursor = self.duck.execute(f"SELECT {columns}, TABLE_SCHEMA, TABLE_NAME FROM ({known}) WHERE {literals(condition)} ORDER BY 1")
        names, rows = [c[0].upper() for c in cursor.description][:-2], [list(row) for row in cursor.fetchall()]
        if "CLUSTERING_KEY" in names:
            for row in rows:
                row[names.index("CLUSTERING_KEY")] = clustering.get(tuple(row[-2:]))
        return names, [row[:-2] for row in rows]

    def comment(self, name, words):
        _, schema, table = parts = unquoted(name)
        ext = "_fs_global._fs_information_schema._fs_tables_ext"
        self.duck.execute(f"DELETE FROM {ext} WHERE ext_table_catalog = ? AND ext_table_schema = ? AND ext_table_name = ?", parts)
        if words is not None:
            self.duck.execute(f"INSERT INTO {ext} VALUES (?, ?, ?, ?)", [*parts, words])

    def has(self, name):
        sql = "SELECT 1 FROM duckdb_tables() WHERE database_name = ? AND schema_name = ? AND table_name = ?"
        return bool(self.duck.execute(sql, unquoted(name)).fetchall())

    def create_table(self, head, kind, guard, name, rest):
        words = None
        if match := re.fullmatch(rf"(.*?)\s+COMMENT\s*=\s*{TEXT}", rest, re.S | re.I):
            rest, words = match.group(1), unescaped(match.group(2))
        cluster = None
        if match := re.fullmatch(r"(.*?)\s+CLUSTER\s+BY\s*(\(.*\))\s*", rest, re.S | re.I):
            rest, cluster = match.group(1), match.group(2)
        if (kind or "").strip().upper() in ("TEMPORARY", "TEMP"):
            self.temporary.add(name)
            return self.fakesnow(f"CREATE {head or ''} TEMPORARY TABLE {guard or ''} {name.rsplit('.', 1)[-1]} {rest}")
        if self.has(name):
            if guard:
                return ["status"], [["already exists, statement succeeded."]]
            if not head:
                raise Refused("002002", "42710", f"SQL compilation error:\nObject '{name}' already exists.")
        answer = self.fakesnow(f"CREATE {head or ''} TABLE {name} {rest}")
        self.comment(name, words)
        key = tuple(unquoted(name)[1:])
        clustering.pop(key, None)
        grants.pop(key, None)
        history.pop(key, None)
        if cluster:
            clustering[key] = f"LINEAR{cluster}"
        return answer

    def comment_on_table(self, name, words):
        if not self.has(name):
            raise Refused("002003", "02000", f"Table '{name}' does not exist or not authorized.")
        self.comment(name, unescaped(words))
        return ["status"], [["Statement executed successfully."]]

    def drop_table(self, guard, name):
        if not guard and not self.has(name):
            raise Refused("002003", "02000", f"Table '{name}' does not exist or not authorized.")
        answer = self.fakesnow(f"DROP TABLE IF EXISTS {name}")
        self.comment(name, None)
        for known in (clustering, grants, history, policies):
            known.pop(tuple(unquoted(name)[1:]), None)
        return answer

    def move(self, one, other):
        """Renames a table with all that is known of it."""
        if not self.has(one):
            raise Refused("002003", "02000", f"Table '{one}' does not exist or not authorized.")
        if self.has(other):
            raise Refused("002002", "42710", f"Object '{other}' already exists.")
        ext = "_fs_global._fs_information_schema._fs_tables_ext"
        (a, b, c), (_, _, to) = unquoted(one), unquoted(other)
        self.duck.execute(f'ALTER TABLE "{a}"."{b}"."{c}" RENAME TO "{to}"')
        where = "ext_table_catalog = ? AND ext_table_schema = ? AND ext_table_name = ?"
        words = self.duck.execute(f"SELECT comment FROM {ext} WHERE {where}", [a, b, c]).fetchall()
        self.comment(one, None)
        self.comment(other, words[0][0] if words else None)
        for known in (clustering, grants, history, policies):
            if (b, c) in known:
                known[(b, to)] = known.pop((b, c))
            else:
                known.pop((b, to), None)

    def rename(self, one, other):
        self.move(one, other)
        return ["status"], [["Statement executed successfully."]]

    def swap(self, one, other):
        for name in (one, other):
            if not self.has(name):
                raise Refused("002003", "02000", f"Table '{name}' does not exist or not authorized.")
        between = one.rsplit(".", 1)[0] + f'."__swap_{uuid.uuid4().hex}"'
        for a, b in ((one, between), (other, one), (between, other)):
            self.move(a, b)
        return ["status"], [["Statement executed successfully."]]

    def grant(self, rights, name, to, option):
        for right in rights.split(","):
            grants.setdefault(tuple(unquoted(name)[1:]), set()).add((right.strip().upper(), unquoted(to)[0], "true" if option else "false"))
        return ["status"], [["Statement executed successfully."]]

    def show_grants(self, name):
        names = ["created_on", "privilege", "granted_on", "name", "granted_to", "grantee_name", "grant_option", "granted_by"]
        rows = [["", p, "TABLE", name, "ROLE", r, o, "SYSADMIN"] for p, r, o in sorted(grants.get(tuple(unquoted(name)[1:]), ()))]
        return names, [["", "OWNERSHIP", "TABLE", name, "ROLE", "SYSADMIN", "true", "SYSADMIN"], *rows]

    def show_tables(self, like, name):
        database, schema = unquoted(name)
        rows = self.tables("TABLE_NAME, COMMENT", f'"{database}"', f"TABLE_SCHEMA = '{schema}'")[1]
        pattern = re.compile("".join({"_": ".", "%": ".*"}.get(c, re.escape(c)) for c in unescaped(like)), re.I)
        return ["created_on", "name", "comment"], [["", table, words or ""] for table, words in rows if pattern.fullmatch(table)]

    def show_grants_on_schema(self, name):
        _, schema = unquoted(name)
        names = ["created_on", "privilege", "granted_on", "name", "granted_to", "grantee_name", "grant_option", "granted_by"]
        return names, [["", "OWNERSHIP", "SCHEMA", name, "ROLE", "OTHER" if "FOREIGN" in schema else "SYSADMIN", "true", ""]]

    def policies(self, name):
        rows = policies.get(tuple(unquoted(name)[1:]), [])
        return ["POLICY_KIND", "POLICY_NAME", "REF_COLUMN_NAME"], rows

    def mask(self, name, column, policy):
        policies.setdefault(tuple(unquoted(name)[1:]), []).append(["MASKING_POLICY", unquoted(policy)[-1], unquoted(column)[0]])
        return ["status"], [["Statement executed successfully."]]

    def use(self, kind, name):
        if "MISSING" in name.upper():
            raise Refused("002043", "02000", "SQL compilation error:\nObject does not exist, or operation cannot be performed.")
        if kind.upper() == "WAREHOUSE":
            self.warehouse = "'" + unquoted(name)[0] + "'"
        return ["status"], [["Statement executed successfully."]]

    def wait(self, seconds):
        time.sleep(float(seconds))
        return ["SYSTEM$WAIT"], [[f"waited {seconds} seconds"]]

    # --- Stages ---

    def folder(self, stage, path):
        if tuple(unquoted(stage)) not in known_stages:
            raise Refused("002003", "02000", f"SQL compilation error:\nStage '{stage}' does not exist or not authorized.")
        return os.path.join(stages, *unquoted(stage), (path or "").lstrip("/"))

    def create_stage(self, name, rest):
        url = re.search(rf"\bURL\s*=\s*{TEXT}", rest, re.I)
        known_stages.setdefault(tuple(unquoted(name)), unescaped(url.group(1)) if url else None)
        return ["status"], [["Stage area successfully created."]]

    def drop_stage(self, name):
        known_stages.pop(tuple(unquoted(name)), None)
        shutil.rmtree(os.path.join(stages, *unquoted(name)), ignore_errors=True)
        return ["status"], [["dropped."]]

    def describe_stage(self, name):
        self.folder(name, "")
        url = known_stages[tuple(unquoted(name))]
        rows = [["STAGE_FILE_FORMAT", "TYPE", "String", "CSV", "CSV"], ["STAGE_LOCATION", "URL", "String", json.dumps([url]) if url else "", ""]]
        return ["parent_property", "property", "property_type", "property_value", "property_default"], rows

    def put(self, file, stage, path, rest):
        return {"folder": os.path.relpath(self.folder(stage, path), stages), "file": file}

    def files(self, stage, path):
        start, root = self.folder(stage, path), self.folder(stage, "")
        for at, _, names in os.walk(root):
            for name in names:
                whole = os.path.join(at, name)
                if whole.startswith(start):
                    yield whole, os.path.relpath(whole, root)

    def external(self, stage, path):
        """URL of a path in an external stage; None for an internal one."""
        self.folder(stage, "")
        url = known_stages[tuple(unquoted(stage))]
        return url and f"{url.rstrip('/')}/{(path or '').lstrip('/')}"

    def list(self, stage, path):
        if url := self.external(stage, path):
            try:
                rows = [[name, str(size), "", ""] for name, size in snowflake_storage.files(url)]
            except ClientError:
                raise Refused(*UNREADABLE) from None
        else:
            rows = [[f"{unquoted(stage)[-1].lower()}/{name}", str(os.path.getsize(whole)), "", ""] for whole, name in self.files(stage, path)]
        return ["name", "size", "md5", "last_modified"], sorted(rows)

    def remove(self, stage, path):
        # The role of a storage integration may read; nobody has let it delete.
        if self.external(stage, path):
            raise Refused(*UNREADABLE)
        found = list(self.files(stage, path))
        for whole, _ in found:
            os.remove(whole)
        return ["name", "result"], [[name, "removed"] for _, name in found]

    def copy(self, target, columns, values, stage, path, files, rest):
        """COPY INTO t (columns) FROM (SELECT $1, … FROM @stage/path) FILES = (…) FILE_FORMAT = (TYPE = CSV, zstd)."""
        key = tuple(unquoted(target)[1:])
        seen, rows = history.setdefault(key, set()), []
        into = "temp.main." + re.findall(PART, target)[-1] if target in self.temporary else target
        url = self.external(stage, path)
        for file in re.findall(TEXT, files):
            whole = snowflake_storage.fetch(url + file) if url else os.path.join(self.folder(stage, path), file)
            if not whole or not os.path.exists(whole):
                raise Refused("091016", "22000", f"Remote file '{file}' was not found.")
            # The history forgets with the transaction; here only its rows tell.
            stamp = (url + file, os.path.basename(whole)) if url else (whole, os.path.getmtime(whole))
            if stamp in seen and "FORCE = TRUE" not in rest:
                rows.append([file, "LOAD_SKIPPED", "0", "0", None, "0", None, None, None, None])
                continue
            loaded = self.copy_file(into, columns, values, whole)
            if url:
                os.remove(whole)
            if not self.in_transaction:
                seen.add(stamp)
            rows.append([file, "LOADED", str(loaded), str(loaded), "1", "0", None, None, None, None])
        names = ["file", "status", "rows_parsed", "rows_loaded", "error_limit", "errors_seen", "first_error"]
        return [*names, "first_error_line", "first_error_character", "first_error_column_name"], rows

    def copy_file(self, into, columns, values, whole):
        count = max([int(n) for n in re.findall(r"\$(\d+)", values)] or [1])
        width = len(open_first(self.duck, whole))
        read = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(1, max(width, count) + 1))
        types = {name: kind for name, kind, *_ in self.duck.execute(f"DESCRIBE {into}").fetchall()}
        chosen = []
        for column, value in zip(unquoted_list(columns), split(values)):
            value = re.sub(r"(?:TO_ARRAY|TO_OBJECT)?\(?PARSE_JSON\(\s*(\$\d+)\s*(?:,\s*'d'\s*)?\)\)?", r"CAST(\1 AS JSON)", value)
            value = re.sub(r"\$(\d+)", r"c\1", value)
            kind = types[column]
            if kind == "TIMESTAMP WITH TIME ZONE":
                # DuckDB does not read this one of the service's formats.
                value = f"replace({value}, ' +0000', '+00')"
            chosen.append(f"unhex({value})" if kind == "BLOB" else f"CAST({value} AS {kind})")
        csv = f"read_csv('{whole}', columns = {{{read}}}, header = false, delim = ',', quote = '\"', escape = '\"', new_line = '\\n', nullstr = '', allow_quoted_nulls = false, compression = 'zstd', auto_detect = false, parallel = false, max_line_size = 200000000)"
        sql = f"INSERT INTO {into} ({columns}) SELECT {', '.join(chosen)} FROM {csv}"
        return self.duck.execute(sql).fetchall()[0][0]


def open_first(duck, whole):
    """The fields of a file's first row."""
    sql = f"SELECT * FROM read_csv('{whole}', header = false, delim = ',', quote = '\"', escape = '\"', all_varchar = true, compression = 'zstd', auto_detect = true, sample_size = 1, max_line_size = 200000000, null_padding = false) LIMIT 0"
    try:
        return duck.execute(sql).description
    except Exception:
        return []


def unquoted_list(columns):
    return [unquoted(c)[0] for c in re.findall(PART, columns)]


def split(values):
    """Splits at commas outside of parentheses and quotes."""
    parts, depth, part, quote = [], 0, "", None
    for c in values:
        if quote:
            quote = None if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "()":
            depth += 1 if c == "(" else -1
        elif c == "," and depth == 0:
            parts.append(part.strip())
            part = ""
            continue
        part += c
    return [*parts, part.strip()]


STAGE = rf"@{NAME}(/[^\s')]*)?"
# Of the table that is a mirror's ledger.
LEDGER = r'"[^"]*"\."[^"]*"\."_MIRROR_OPERATOR_[0-9A-F_]{36}"'
STATEMENTS = [
    (re.compile(pattern, re.S | re.I), method)
    for pattern, method in [
        (rf"CREATE\s+(OR\s+REPLACE\s+)?(TRANSIENT\s+|TEMPORARY\s+|TEMP\s+)?TABLE\s+(IF\s+NOT\s+EXISTS\s+)?{NAME}\s*(.*)", Session.create_table),
        (rf"COMMENT\s+ON\s+TABLE\s+{NAME}\s+IS\s+{TEXT}", Session.comment_on_table),
        (rf"DROP\s+TABLE\s+(IF\s+EXISTS\s+)?{NAME}", Session.drop_table),
        (rf"ALTER\s+TABLE\s+{NAME}\s+RENAME\s+TO\s+{NAME}", Session.rename),
        (rf"ALTER\s+TABLE\s+{NAME}\s+SWAP\s+WITH\s+{NAME}", Session.swap),
        (rf"GRANT\s+([\w\s,]+?)\s+ON\s+TABLE\s+{NAME}\s+TO\s+ROLE\s+{NAME}(\s+WITH\s+GRANT\s+OPTION)?", Session.grant),
        (rf"SHOW\s+GRANTS\s+ON\s+TABLE\s+{NAME}", Session.show_grants),
        (rf"SHOW\s+TABLES\s+LIKE\s+{TEXT}\s+IN\s+SCHEMA\s+({PART}\.{PART})", Session.show_tables),
        (rf"SHOW\s+GRANTS\s+ON\s+SCHEMA\s+({PART}\.{PART})", Session.show_grants_on_schema),
        (rf"SELECT POLICY_KIND, .*POLICY_REFERENCES\(REF_ENTITY_NAME => '({PART}\.{PART}\.{PART})', .*", Session.policies),
        (rf"ALTER\s+TABLE\s+{NAME}\s+MODIFY\s+COLUMN\s+({PART})\s+SET\s+MASKING\s+POLICY\s+{NAME}", Session.mask),
        (rf"((?:SELECT \"[^()]* FROM|SELECT \"KIND\".* FROM|UPDATE|MERGE INTO|DELETE FROM) {LEDGER} .*)", Session.ledger),
        (rf"SELECT (.*) FROM ({PART})\.INFORMATION_SCHEMA\.TABLES WHERE (.*?)(?:\s+ORDER BY 1)?", Session.tables),
        (rf"USE\s+(ROLE|WAREHOUSE)\s+{NAME}", Session.use),
        (r"CALL\s+SYSTEM\$WAIT\(\s*([\d.]+)\s*\)", Session.wait),
        (rf"CREATE\s+STAGE\s+IF\s+NOT\s+EXISTS\s+{NAME}(.*)", Session.create_stage),
        (rf"DROP\s+STAGE\s+IF\s+EXISTS\s+{NAME}", Session.drop_stage),
        (rf"DESC(?:RIBE)?\s+STAGE\s+{NAME}", Session.describe_stage),
        (rf"PUT\s+'file://([^']*)'\s+'{STAGE}'(.*)", Session.put),
        (rf"LIST\s+{STAGE}", Session.list),
        (rf"REMOVE\s+{STAGE}", Session.remove),
        (rf"COPY\s+INTO\s+{NAME}\s*\((.*?)\)\s*FROM\s*\(\s*SELECT\s+(.*?)\s+FROM\s+{STAGE}\s*\)\s*FILES\s*=\s*\(([^)]*)\)(.*)", Session.copy),
    ]
]


def begin(directory):
    """Makes the databases, empty."""
    global stages
    stages = directory
    shutil.rmtree(stages, ignore_errors=True)
    for name in ("SHOP", "MO"):
        database.connect().cursor().execute(f'CREATE DATABASE "{name}"')
        database.connect().cursor().execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"."PUBLIC"')
