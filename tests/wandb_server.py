"""A local server that speaks as much of W&B's protocol as the real client needs, and remembers it.

    with WandbServer() as server:
        ... run the client with the environment server.environment() ...
        server.runs["abcd1234"].history

It knows runs (also resumed ones), files, artifacts and sweeps. What a sweep's trials are to try is
a list that the test gives: the search itself is the real server's.
"""

import base64
import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

ENTITY = "tester"
KEY = "0123456789" * 4


@dataclass
class ServedRun:
    """What came of one run."""

    id: str
    fields: dict[str, Any] = field(default_factory=dict)  # groupName, tags, notes, sweep ...
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # ids of the artifacts that it used
    exit_code: int | None = None
    sessions: int = 0  # how often it was begun or resumed

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines[name].items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, in order."""
        return self._rows("wandb-history.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        return (self._rows("wandb-summary.json") or [{}])[-1]


@dataclass
class Sweep:
    """A sweep: its yaml as the client sent it, and the settings that its trials are to try."""

    config: dict[str, Any]
    trials: list[dict[str, Any]]
    started: list[str] = field(default_factory=list)  # run ids, in order
    running: set[str] = field(default_factory=set)  # as the agent said last


class WandbServer:
    """The server, in a thread of this process.

    Attributes to set: `status`, what requests of a kind answer in place of 200; `trials`, what the
    next sweep is to try; `stop`, runs that it ends early as Hyperband does, by their id, and after
    how many values of the sweep's metric.
    """

    def __init__(self):
        self.runs: dict[str, ServedRun] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.operations: list[tuple[str, dict[str, Any]]] = []  # GraphQL: name and variables
        self.trials: list[dict[str, Any]] = []
        self.stop: dict[str, int] = {}
        self.status = {"graphql": 200, "file_stream": 200, "upload": 200}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"world": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Answer nothing any more, as a lost network does."""
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Return the variables with which the client finds the server and may enter."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY,
                "WANDB_MODE": "online"}

    def run(self, name: str) -> ServedRun:
        """Return a run, a new one if there is none of the name."""
        return self.runs.setdefault(name, ServedRun(name))

    # GraphQL, an answer for each operation that the client sends

    def answer(self, name: str, v: dict[str, Any]) -> dict[str, Any]:
        """Return what a GraphQL operation with the variables `v` comes to."""
        with self._lock:
            self.operations.append((name, v))
            operation = getattr(self, f"_on_{name}", None)
            if operation is None:
                return {"errors": [{"message": f"tests/wandb_server.py knows no {name}"}]}
            return {"data": operation(v)}

    def _on_Viewer(self, v):
        return {"viewer": {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "",
                           "flags": "{}", "teams": {"edges": []}, "admin": False}}

    def _on_ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def _on_RunResumeStatus(self, v):
        run = self.runs.get(v["name"])
        if run is None or not run.sessions:
            return {"model": {"id": "model", "name": v["project"], "entity": _named(ENTITY),
                              "bucket": None}}
        history, events = (list(run.lines[name].values()) for name in (
            "wandb-history.jsonl", "wandb-events.jsonl"))
        return {"model": {"id": "model", "name": v["project"], "entity": _named(ENTITY), "bucket": {
            "id": _id(run.id), "name": run.id, "displayName": run.fields.get("displayName"),
            "summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config),
            "historyLineCount": len(history), "historyTail": json.dumps(history[-1:]),
            "eventsLineCount": len(events), "eventsTail": json.dumps(events[-1:]),
            "logLineCount": len(run.lines["output.log"]), "tags": run.fields.get("tags") or [],
            "notes": run.fields.get("notes"), "wandbConfig": json.dumps({"t": 1})}}}

    def _on_UpsertBucket(self, v):
        name = v.get("name") or _name(v["id"])
        inserted = name not in self.runs or not self.runs[name].sessions
        run = self.run(name)
        run.sessions += bool(v.get("project") and v.get("host"))
        run.fields |= {key: value for key, value in v.items() if value is not None}
        run.config |= json.loads(v.get("config") or "{}")
        return {"upsertBucket": {"inserted": inserted, "bucket": {
            "id": _id(name), "name": name, "displayName": run.fields.get("displayName") or name,
            "description": "", "config": json.dumps(run.config), "sweepName": v.get("sweep"),
            "project": _project(run.fields.get("project")),
            "historyLineCount": len(run.lines["wandb-history.jsonl"])}}}

    def _on_CreateRunFiles(self, v):
        return {"createRunFiles": {"runID": _id(v["run"]), "uploadHeaders": [], "files": [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{v['run']}/{name}"}
            for name in v["files"]]}}

    def _on_MarkRunFilesUploaded(self, v):
        return {"markRunFilesUploaded": {"success": True}}

    def _on_RunState(self, v):
        run = self.run(v["run"])
        state = "running" if run.exit_code is None else "finished"
        return {"project": {"run": {"id": _id(run.id), "state": state}}}

    # artifacts

    def _on_ArtifactType(self, v):
        return {"project": {"artifact": None}}

    def _on_XXHashDigestsEnabled(self, v):
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _on_CreateArtifact(self, v):
        made = v["input"]
        key = next((key for key, artifact in self.artifacts.items()
                    if artifact["digest"] == made["digest"]
                    and artifact["name"] == made["artifactCollectionName"]),
                   f"artifact-{len(self.artifacts)}")
        known = self.artifacts.setdefault(key, {
            "name": made["artifactCollectionName"], "type": made["artifactTypeName"],
            "digest": made["digest"], "metadata": json.loads(made.get("metadata") or "{}"),
            "aliases": [alias["alias"] for alias in made.get("aliases") or []],
            "project": made["projectName"], "run": made.get("runName"),
            "client_id": made.get("clientID"), "state": "PENDING", "files": {}})
        return {"createArtifact": {"artifact": {
            "id": key, "state": known["state"], "artifactSequence": {"latestArtifact": None}}}}

    def _on_CreateArtifactManifest(self, v):
        return {"createArtifactManifest": self._manifest(v["artifactID"])}

    def _on_UpdateArtifactManifest(self, v):
        return {"updateArtifactManifest": self._manifest(
            v["artifactManifestID"].removeprefix("manifest-"))}

    def _manifest(self, key):
        return {"artifactManifest": {"id": f"manifest-{key}", "file": {
            "id": "file", "uploadHeaders": [],
            "uploadUrl": f"{self.url}/upload/artifact/{key}/manifest"}}}

    def _on_CreateArtifactFiles(self, v):
        return {"createArtifactFiles": {"files": {"edges": [{"node": {
            "storagePath": f"{file['artifactID']}/{file['name']}", "uploadHeaders": [],
            "uploadUrl": f"{self.url}/upload/artifact/{file['artifactID']}/{file['name']}",
            "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}}
            for file in v["input"]["artifactFiles"]]}}}

    def _on_CommitArtifact(self, v):
        self.artifacts[v["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {
            "id": v["artifactID"], "digest": self.artifacts[v["artifactID"]]["digest"]}}}

    def _on_ArtifactByID(self, v):
        known = self.artifacts[v["id"]]
        project = _project(known["project"]) | {"internalId": "project"}
        sequence = {"__typename": "ArtifactSequence", "name": known["name"], "project": project}
        return {"artifact": {
            "__typename": "Artifact", "id": v["id"], "artifactSequence": sequence,
            "versionIndex": 0, "artifactType": {"name": known["type"]}, "description": None,
            "metadata": json.dumps(known["metadata"]), "ttlDurationSeconds": -1,
            "ttlIsInherited": True, "tags": [], "historyStep": None, "state": known["state"],
            "size": 0, "digest": known["digest"], "commitHash": None,
            "fileCount": len(known["files"]), "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None, "aliases": []}}

    def _on_ArtifactManifest(self, v):
        return {"artifact": {"currentManifest": {"file": {
            "directUrl": f"{self.url}/upload/artifact/{v['artifact_id']}/manifest"}}}}

    def _on_ClientIDMapping(self, v):
        found = [key for key, artifact in self.artifacts.items()
                 if artifact["client_id"] == v["clientID"]]
        return {"clientIDMapping": {"serverID": found[0]} if found else None}

    def _on_UseArtifact(self, v):
        self.run(v["input"]["runName"]).used.append(v["input"]["artifactID"])
        return {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}}

    # sweeps

    def _on_UpsertSweep(self, v):
        name = f"sweep{len(self.sweeps) + 1}"
        self.sweeps[name] = Sweep(yaml.safe_load(v["config"]), list(self.trials))
        return {"upsertSweep": {"configValidationWarnings": [], "sweep": {
            "name": name, "project": _project(v.get("projectName"))}}}

    def _on_SweepWithRuns(self, v):
        sweep = self.sweeps.get(v["sweep"])
        return {"project": {"sweep": sweep and {
            "id": v["sweep"], "name": v["sweep"], "state": "RUNNING", "runs": {"edges": []},
            "method": sweep.config["method"], "config": yaml.safe_dump(sweep.config)}}}

    def _on_CreateAgent(self, v):
        return {"createAgent": {"agent": {"id": v["sweep"]}}}  # one agent; its id is the sweep's

    def _on_Heartbeat(self, v):
        sweep = self.sweeps[v["id"]]
        sweep.running = set(json.loads(v["runState"]))
        metric = sweep.config.get("metric", {}).get("name")
        commands = [{"type": "stop", "run_id": name} for name in sweep.running & set(self.stop)
                    if sum(metric in row for row in self.run(name).history) >= self.stop[name]]
        if not sweep.running and len(sweep.started) < len(sweep.trials):
            settings = {key: found["value"] for key, found in sweep.config["parameters"].items()
                        if "value" in found} | sweep.trials[len(sweep.started)]
            sweep.started.append(f"{v['id']}-{len(sweep.started) + 1}")
            commands.append({
                "type": "run", "run_id": sweep.started[-1],
                "program": sweep.config.get("program"),
                "args": {key: {"value": value} for key, value in settings.items()}})
        elif not sweep.running:
            commands.append({"type": "exit"})
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    # files

    def stream(self, name: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Take lines of a run's files: history, summary, events, what it printed."""
        with self._lock:
            run = self.run(name)
            for file, chunk in (sent.get("files") or {}).items():
                for number, line in enumerate(chunk["content"]):
                    run.lines[file][chunk["offset"] + number] = line
            if sent.get("complete"):
                run.exit_code = sent.get("exitcode")
            return {"limits": {}}

    def upload(self, kind: str, name: str, file: str, content: bytes) -> None:
        """Take a file of a run, or one of an artifact."""
        with self._lock:
            files = self.run(name).files if kind == "run" else self.artifacts[name]["files"]
            files[file] = content


def _id(name: str) -> str:
    return base64.b64encode(f"Run:{name}".encode()).decode()


def _name(run_id: str) -> str:
    return base64.b64decode(run_id).decode().removeprefix("Run:")


def _named(name: str) -> dict[str, str]:
    return {"id": name, "name": name}


def _project(name: str | None) -> dict[str, Any]:
    return {**_named(name or "uncategorized"), "entity": _named(ENTITY)}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    """Requests to graphql, to a run's file stream, and uploads."""

    world: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._wrong_key():
            self._send(401, {"errors": [{"message": "invalid API key"}]})
        elif self.path == "/graphql":
            asked = json.loads(body)
            name = asked.get("operationName") or re.search(
                r"\b(?:query|mutation)\s+(\w+)", asked["query"])[1]
            self._send_or_fail(
                "graphql", lambda: self.world.answer(name, asked.get("variables") or {}))
        elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self._send_or_fail("file_stream", lambda: self.world.stream(
                unquote(match[1]), json.loads(body)))
        else:
            self._send(404, {})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, _, kind, name, file = unquote(self.path).split("/", 4)
        self._send_or_fail("upload", lambda: self.world.upload(kind, name, file, body) or {})

    def do_GET(self):
        """Answer whether there is a server, or with a file of an artifact."""
        if match := re.fullmatch(r"/upload/artifact/([^/]+)/(.+)", unquote(self.path)):
            self._send(200, json.loads(self.world.artifacts[match[1]]["files"][match[2]]))
        else:
            self._send(200, {})

    do_HEAD = do_GET

    def _wrong_key(self) -> bool:
        expected = base64.b64encode(f"api:{KEY}".encode()).decode()
        return self.headers.get("Authorization") != f"Basic {expected}"

    def _send_or_fail(self, kind: str, make: Any) -> None:
        status = self.world.status[kind]
        self._send(status, make() if status == 200 else {"error": f"status {status}"})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Say nothing: what was asked stands in `operations`."""
