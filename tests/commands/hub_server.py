"""A stand-in for the HTTP interface of the Hugging Face hub, on a local port.

It has what `huggingface_hub` asks for when it creates a repository, commits files (small ones in
the commit, others by Git LFS) and downloads them: https://huggingface.co/docs/hub/api.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

import yaml

TOKEN = "hf_of_a_test"
_INLINE = 64  # Bytes; larger files go by LFS.


class Hub:
    """Repositories in memory.

    Attributes:
        commits: dict from `owner/name` to a list of `(sha, files)`, the oldest first; `files` is a
            dict from name to bytes.
        private: dict from `owner/name` to bool.
        by_lfs: list of the names of files that were committed as LFS pointers.
        requests: list of `METHOD path`.
    """

    def __init__(self):
        self.commits, self.private, self.objects = {}, {}, {}
        self.by_lfs, self.requests = [], []
        self.address = None

    def find(self, repository, revision):
        for sha, files in reversed(self.commits.get(repository, [])):
            if revision in ("main", sha):
                return sha, files
        return None


@contextlib.contextmanager
def serve():
    """Yields a `Hub` that answers at `hub.address`."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("H", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_one(self, routes):
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, method in routes.items():
            if match := re.fullmatch(pattern, path):
                return method(self, *match.groups())
        return self.reply(404, {"error": "no such route"})

    def allowed(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.body()
        self.reply(401, {"error": "Invalid username or password."})
        return False

    def create(self):
        if not self.allowed():
            return
        asked = json.loads(self.body())
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.commits:
            self.reply(409, {"error": "You already created this model repo", **url})
            return
        self.hub.private[name] = asked.get("private") or asked.get("visibility") == "private"
        self.hub.commits[name] = [(hashlib.sha1(name.encode()).hexdigest(), {})]
        self.reply(200, url)

    def validate(self):
        """Checks the metadata of a model card, as the hub does before a commit."""
        metadata = yaml.safe_load(json.loads(self.body())["content"].split("---")[1])
        known = ("apache-2.0", "cc-by-4.0", "mit", "other", "unknown")
        errors = [] if metadata["license"] in known else [{"message": '"license" must be known'}]
        self.reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, repository, revision):
        if not self.allowed():
            return
        files = json.loads(self.body())["files"]
        if self.hub.find(repository, revision) is None:
            self.reply(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > _INLINE else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self.reply(200, {"files": modes})

    def batch(self, repository):
        if not self.allowed():
            return
        found = [
            {
                **wanted,
                "actions": {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}},
            }
            for wanted in json.loads(self.body())["objects"]
        ]
        self.reply(200, {"transfer": "basic", "objects": found})

    def put(self, oid):
        content = self.body()
        good = hashlib.sha256(content).hexdigest() == oid
        if good:
            self.hub.objects[oid] = content
        self.reply(200 if good else 422)

    def commit(self, repository, revision):
        if not self.allowed():
            return
        found = self.hub.find(repository, revision)
        files = dict(found[1])
        for line in self.body().decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                self.hub.by_lfs.append(value["path"])
        commits = self.hub.commits[repository]
        sha = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits.append((sha, files))
        url = f"{self.hub.address}/{repository}/commit/{sha}"
        self.reply(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def resolve(self, repository, revision, name):
        if repository not in self.hub.commits:
            self.reply(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            return
        found = self.hub.find(repository, revision)
        if found is None:
            self.reply(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            return
        sha, files = found
        if name not in files:
            self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        etag = hashlib.sha256(files[name]).hexdigest()
        self.reply(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=sha)

    def do_GET(self):
        self.handle_one({r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)": _Handler.resolve})

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self):
        self.handle_one({r"/lfs/(\w+)": _Handler.put})

    def do_POST(self):
        self.handle_one(
            {
                "/api/repos/create": _Handler.create,
                "/api/validate-yaml": _Handler.validate,
                r"/api/models/([\w.-]+/[\w.-]+)/preupload/([\w.-]+)": _Handler.preupload,
                r"/api/models/([\w.-]+/[\w.-]+)/commit/([\w.-]+)": _Handler.commit,
                r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": _Handler.batch,
            }
        )
