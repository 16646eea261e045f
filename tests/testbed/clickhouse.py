"""Runs ClickHouse's own HTTP and native listeners from its shared library, until it is killed.

usage: clickhouse.py LIBRARY DATA HTTP_PORT NATIVE_PORT ADDRESS, in a directory with the server's config.xml
"""

import ctypes
import os
import sys

library, data, http_port, native_port, address = sys.argv[1:]
engine = ctypes.CDLL(library, mode=os.RTLD_NOW | os.RTLD_GLOBAL)
engine.chdb_query_cmdline.restype = ctypes.c_void_p
engine.chdb_query_cmdline.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
engine.chdb_result_error.restype = ctypes.c_char_p
engine.chdb_result_error.argtypes = [ctypes.c_void_p]
# The listeners live as long as the query that started them.
query = (
    "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; "
    "SELECT sleepEachRow(1) FROM system.numbers SETTINGS max_block_size = 1, max_threads = 1 FORMAT Null"
)
arguments = ["clickhouse", "--path", data, "--config-file", "config.xml", "--http_port", http_port, "--tcp_port", native_port]
arguments += ["--listen_host", address, "--query", query]
result = engine.chdb_query_cmdline(len(arguments), (ctypes.c_char_p * len(arguments))(*[a.encode() for a in arguments]))
error = engine.chdb_result_error(result)
if error:
    sys.exit(error.decode())
