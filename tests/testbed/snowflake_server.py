"""A stand-in for Snowflake: speaks HTTP as the service does. Runs until it is killed, and forgets everything.

usage: snowflake_server.py PORT ADDRESS DIRECTORY

Follows the service's documentation and its drivers: requests with an id that was seen are answered as before, statements that take long are polled for, tokens
expire and are renewed, large answers come in parts, and PUT hands out a place in object storage (S3 over plain HTTP). Statements: see snowflake_sql.py.
Whatever is sent to /status/503, say, is answered so: tests lead requests there.
"""

import gzip
import json
import os
import sys
import threading
import time
import traceback
import uuid
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import snowflake.connector.errors

import snowflake_sql
import snowflake_storage
from snowflake_sql import Refused, Session

port, address, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
stages = os.path.join(directory, "stages")

SECONDS_UNTIL_POLLED = 2
SECONDS_OF_A_TOKEN = 3600
# Of an answer's rows, how many come with it.
FIRST_ROWS = 500

sessions, masters = {}, {}
answers, answering = {}, threading.Lock()
# Of large answers.
parts = {}


def text(value):
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "1" if value else "0"
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def refusal(code, state, words):
    data = {"age": 0, "errorCode": code, "internalError": False, "line": -1, "pos": -1, "queryId": str(uuid.uuid4()), "sqlState": state}
    return {"data": data, "code": code, "message": words, "success": False, "headers": None}


def execute(session, sql, host):
    try:
        answer = session.run(sql)
    except Refused as e:
        return refusal(e.code, e.state, str(e))
    except snowflake.connector.errors.Error as e:
        code, words = f"{e.errno:06d}", e.msg or str(e)
        return refusal("002002" if "already exists" in words else code, e.sqlstate, words)
    except Exception as e:
        words = str(e)
        traceback.print_exc()
        null = "NOT NULL constraint" in words
        return refusal("100072" if null else "100038" if "onver" in words else "000603", "22000", f"{type(e).__name__}: {words}")
    if isinstance(answer, dict):
        return {"data": place(answer, host), "code": None, "message": None, "success": True}
    names, rows = answer
    rowset = [[text(v) for v in row] for row in rows]
    more = []
    while len(rowset) > FIRST_ROWS:
        part, rowset = rowset[FIRST_ROWS:][-FIRST_ROWS:], rowset[: max(FIRST_ROWS, len(rowset) - FIRST_ROWS)]
        name = str(uuid.uuid4())
        parts[name] = json.dumps(part)[1:-1].encode()
        more.insert(0, {"url": f"http://{host}/parts/{name}", "rowCount": len(part), "uncompressedSize": len(parts[name])})
    rowtype = [{"name": name, "type": "text", "nullable": True} for name in names]
    data = {"parameters": [], "rowtype": rowtype, "rowset": rowset, "total": len(rows), "returned": len(rows), "queryId": str(uuid.uuid4()), "queryResultFormat": "json"}
    if more:
        data |= {"chunks": more, "chunkHeaders": {"x-testbed-part": "1"}}
    return {"data": data, "code": None, "message": None, "success": True}


def place(put, host):
    creds = {"AWS_KEY_ID": "AK", "AWS_SECRET_KEY": "SK", "AWS_TOKEN": "T", "AWS_ID": "AK", "AWS_KEY": "SK"}
    info = {"locationType": "S3", "location": f"stages/{put['folder'].rstrip('/')}/", "region": "us-east-1", "creds": creds, "endPoint": f"http://{host}"}
    info |= {"isClientSideEncrypted": False, "presignedUrl": None}
    more = {"src_locations": [put["file"]], "parallel": 4, "threshold": 209715200, "autoCompress": False, "overwrite": True, "sourceCompression": "none"}
    return {"command": "UPLOAD", "stageInfo": info, "encryptionMaterial": None, **more}


class Work:
    """A statement that is executed, once for all requests of one id."""

    def __init__(self, session, sql, host):
        self.id, self.done, self.answer = str(uuid.uuid4()), threading.Event(), None
        threading.Thread(target=self.go, args=(session, sql, host), daemon=True).start()

    def go(self, session, sql, host):
        self.answer = execute(session, sql, host)
        self.done.set()

    def reply(self):
        if self.done.wait(SECONDS_UNTIL_POLLED):
            return self.answer
        data = {"queryId": self.id, "getResultUrl": f"/queries/{self.id}/result", "queryAbortsAfterSecs": 300, "progressDesc": None}
        return {"data": data, "code": "333334", "message": "Query execution in progress.", "success": True}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of an answer leave together: else the second waits for the client's acknowledgement of the first, 40 ms.
    wbufsize = -1

    def log_message(self, *args):
        pass

    def body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def say(self, status, data, **headers):
        if isinstance(data, (dict, list)):
            data = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def token(self):
        return (self.headers.get("Authorization") or "")[17:-1]

    def session(self):
        found = sessions.get(self.token())
        if found and time.monotonic() > found[1]:
            return None, refusal("390112", "08001", "Your session has expired. Please login again.") | {"data": None}
        if not found:
            return None, refusal("390111", "08001", "Session no longer exists. New login required to access the service.") | {"data": None}
        return found[0], None

    def do_POST(self):
        url = urlsplit(self.path)
        query, body = parse_qs(url.query, keep_blank_values=True), self.body()
        if url.path.startswith("/status/"):
            return self.say(int(url.path[len("/status/"):]), b"")
        if url.path == "/session/v1/login-request":
            return self.say(200, self.login(json.loads(body)["data"]))
        if url.path == "/session/token-request":
            return self.say(200, self.renew(json.loads(body)))
        if url.path == "/session":
            if found := sessions.pop(self.token(), None):
                found[0].end()
            return self.say(200, {"data": None, "code": None, "message": None, "success": True})
        if url.path == "/queries/v1/query-request":
            return self.say(200, self.query(query["requestId"][0], json.loads(body)["sqlText"]))
        self.s3("POST", url.path, query, body)

    def do_GET(self):
        path = urlsplit(self.path).path.split("/")
        if path[1] == "parts":
            return self.say(200, gzip.compress(parts.pop(path[2])), **{"Content-Encoding": "gzip"})
        if path[1] == "queries":
            work = next((w for w in list(answers.values()) if w.id == path[2]), None)
            return self.say(200, work.reply() if work else refusal("000709", "02000", "Statement not found"))
        self.say(200, b"up")

    def do_PUT(self):
        url = urlsplit(self.path)
        if url.path.startswith("/status/"):
            self.body()
            return self.say(int(url.path[len("/status/"):]), b"")
        self.s3("PUT", url.path, parse_qs(url.query, keep_blank_values=True), self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_DELETE(self):
        self.say(204, b"")

    def login(self, data):
        password, user = os.environ.get("PGPASSWORD", "testbed-secret"), data["LOGIN_NAME"]
        if data.get("AUTHENTICATOR") == "SNOWFLAKE_JWT":
            # The key is not looked at, only that there is a token.
            if data.get("TOKEN", "").count(".") != 2:
                return refusal("390144", "08001", "JWT token is invalid.") | {"data": {"authnMethod": "KEYPAIR"}}
        elif data.get("PASSWORD") != password:
            return refusal("390100", "08001", "Incorrect username or password was specified.") | {"data": {"authnMethod": "USERNAME_PASSWORD"}}
        seconds = float(data["SESSION_PARAMETERS"].get("TESTBED_SECONDS_OF_A_TOKEN", SECONDS_OF_A_TOKEN))
        token, master = uuid.uuid4().hex, uuid.uuid4().hex
        masters[master] = Session()
        sessions[token] = (masters[master], time.monotonic() + seconds)
        info = {"token": token, "masterToken": master, "validityInSeconds": 3600, "masterValidityInSeconds": 14400, "sessionId": 1}
        info |= {"serverVersion": "9.30.0", "parameters": [], "sessionInfo": {"roleName": "SYSADMIN", "userName": user}}
        return {"data": info, "code": None, "message": None, "success": True}

    def renew(self, body):
        session = masters.get(self.token())
        if not session:
            return refusal("390114", "08001", "Authentication token has expired.") | {"data": None}
        token = uuid.uuid4().hex
        sessions.pop(body["oldSessionToken"], None)
        sessions[token] = (session, time.monotonic() + SECONDS_OF_A_TOKEN)
        data = {"sessionToken": token, "validityInSecondsST": 3600, "masterToken": self.token(), "validityInSecondsMT": 14400, "sessionId": 1}
        return {"data": data, "code": None, "message": None, "success": True}

    def query(self, request, sql):
        session, gone = self.session()
        if gone:
            return gone
        with answering:
            work = answers.get(request)
            if not work:
                work = answers[request] = Work(session, sql, self.headers.get("Host"))
                while len(answers) > 5000:
                    del answers[next(iter(answers))]
        return work.reply()

    # --- Object storage: whole objects and multipart uploads. ---

    def s3(self, method, path, query, body):
        if not path.startswith("/stages/"):
            return self.say(404, b"")
        whole = os.path.normpath(os.path.join(stages, unquote(path[len("/stages/"):])))
        assert whole.startswith(stages)
        if "uploads" in query:
            upload = uuid.uuid4().hex
            return self.say(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode())
        if method == "POST":
            parts = sorted(os.listdir(f"{directory}/uploads/{query['uploadId'][0]}"), key=int)
            data = b"".join(open(f"{directory}/uploads/{query['uploadId'][0]}/{part}", "rb").read() for part in parts)
            self.keep(whole, data)
            return self.say(200, b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>')
        if "partNumber" in query:
            self.keep(f"{directory}/uploads/{query['uploadId'][0]}/{query['partNumber'][0]}", body)
        else:
            self.keep(whole, body)
        self.say(200, b"", ETag='"e"')

    def keep(self, path, data):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


snowflake_sql.begin(stages)
snowflake_storage.begin(address, port + 1)
Server((address, port), Handler).serve_forever()
