#!/usr/bin/env python3
"""Records a fail2ban server's raw replies, as seeds for FuzzDecode: record.py SOCKET JAIL FOLDER"""
import pathlib
import pickle
import socket
import sys

END = b"<F2B_END_COMMAND>"
path, jail, folder = sys.argv[1:]
commands = {
    "ping": ["ping"], "version": ["version"], "status": ["status"], "status-jail": ["status", jail],
    "status-short": ["status", jail, "short"], "banned": ["banned"], "banned-ip": ["banned", "192.0.2.1"],
    "get-banned": ["get", jail, "banned", "192.0.2.1", "192.0.2.2"], "get-banip": ["get", jail, "banip"],
    "get-banip-time": ["get", jail, "banip", "--with-time"], "bantime": ["get", jail, "bantime"],
    "ignoreip": ["get", jail, "ignoreip"], "logtarget": ["get", "logtarget"], "dbfile": ["get", "dbfile"],
    "thread": ["get", "thread"], "formula": ["get", jail, "bantime.factor"], "unknown-jail": ["status", "nothere"],
    "unknown-command": ["get", jail, "nothing"], "index-error": ["set"], "value-error": ["set", jail, "maxretry", "x"],
    "not-banned": ["set", jail, "unbanip", "--report-absent", "192.0.2.77"],
    "bad-regex": ["set", jail, "addfailregex", "("], "no-file": ["set", jail, "addlogpath", "/nonexistent/x"],
    "ban": ["set", jail, "banip", "192.0.2.3"], "increment": ["get", jail, "bantime.increment"],
}
raw = {name: pickle.dumps(words, 2) for name, words in commands.items()}
raw["undecodable"] = b"\x80\x02cnothing.here\nx\n."
with socket.socket(socket.AF_UNIX) as conn:
    conn.connect(path)
    for name, request in raw.items():
        conn.sendall(request + END)
        reply = b""
        while not reply.endswith(END):
            reply += conn.recv(65536)
        pathlib.Path(folder, name).write_bytes(reply[: -len(END)])
