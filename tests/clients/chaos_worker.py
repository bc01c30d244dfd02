"""A worker of the chaos run that is not ours: all messages by reflection, the rules of the stream by hand.

    chaos_worker.py ADDRESS LEDGER NAME

Runs jobs of the queue "py", which take no time, until SIGTERM. It goes on with its session on a new stream whenever
one breaks, sends results again until they have a verdict, and writes a line for each thing into the ledger.
"""

import json
import os
import queue
import signal
import sys
import threading
import time

import grpc
from journey import Api

BEAT_EVERY = 3
RESEND_AFTER = 10
SILENCE = 7
VERDICTS = {0: "UNSPECIFIED", 1: "RECORDED", 2: "STALE", 3: "REJECTED", 4: "UNKNOWN"}


class Worker:
    def __init__(self, address, ledger, name):
        self.address, self.name = address, name
        self.ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.lock = threading.Lock()
        self.held = {}  # (job, attempt): output, of all without a verdict
        self.sent = {}  # the same keys: when
        self.taken = set()
        self.token, self.attach, self.leaving, self.left = b"", 0, threading.Event(), False

    def line(self, what, key, more=""):
        text = f"{what} {key[0]} {key[1]} {self.name} {int(time.time() * 1000)} {more}\n"
        os.write(self.ledger, text.encode())

    def learn(self):
        """Asks what the messages are, until somebody answers."""
        while True:
            channel = grpc.insecure_channel(self.address)
            try:
                grpc.channel_ready_future(channel).result(timeout=5)
                self.api = Api(channel)
                self.api.method("WorkerService", "LeaseJobs")
                return
            except Exception:
                channel.close()
                time.sleep(0.2)

    def results(self, keys):
        make = self.api.message
        self.sent.update((key, time.monotonic()) for key in keys)
        each = [make("Result", lease=make("Lease", job_id=key[0], attempt=key[1]),
                     success=make("Success", output=make("Payload", content_type="application/json", text=self.held[key])))
                for key in keys]
        return each

    def receipts(self, receipts):
        for receipt in receipts:
            key = (receipt.lease.job_id, receipt.lease.attempt)
            self.line("told", key, f"{VERDICTS[receipt.status]} {receipt.state}")
            if receipt.status in (1, 2, 4):
                with self.lock:
                    self.held.pop(key, None)
                    self.sent.pop(key, None)

    def run(self):
        self.learn()
        while not self.left:
            channel = grpc.insecure_channel(self.address)
            self.api.channel = channel
            try:
                self.stream()
            except grpc.RpcError:
                pass
            finally:
                channel.close()
            time.sleep(0.2)

    def stream(self):
        make, outgoing, over = self.api.message, queue.Queue(), threading.Event()
        send = lambda **message: outgoing.put(make("LeaseJobsRequest", **message))
        self.attach += 1
        with self.lock:
            held = [make("Lease", job_id=job, attempt=attempt) for job, attempt in self.held]
        hello = make("Hello", protocol=1, worker=self.name, queues=[make("QueueSubscription", queue="py")],
                     kinds=["quick"], max_in_flight=8, sdk="python by hand", resume_token=self.token,
                     attach_sequence=self.attach, held=held)
        hello.lease_ttl.seconds = 10
        send(hello=hello)
        call = self.api.method("WorkerService", "LeaseJobs")(iter(outgoing.get, None))
        state = {"beats": 0, "frame": 0, "heard": time.monotonic(), "goodbye": False}

        def beat():
            with self.lock:
                state["beats"] += 1
                held = [make("Lease", job_id=job, attempt=attempt) for job, attempt in self.held]
                send(heartbeat=make("Heartbeat", sequence=state["beats"], last_frame=state["frame"], held=held))

        def keep_alive():
            while not over.wait(0.2 if self.leaving.is_set() and not state["goodbye"] else BEAT_EVERY):
                if time.monotonic() - state["heard"] > SILENCE:
                    call.cancel()
                if self.leaving.is_set() and state["beats"] and not state["goodbye"]:
                    state["goodbye"] = True
                    send(goodbye=make("Goodbye"))
                if state["beats"]:
                    beat()
                    with self.lock:
                        late = [key for key in self.held if time.monotonic() - self.sent.get(key, 0) > RESEND_AFTER]
                        if late:
                            send(results=make("Results", results=self.results(late)))

        threading.Thread(target=keep_alive, daemon=True).start()
        try:
            for answer in call:
                kind = answer.WhichOneof("message")
                if kind == "welcome":
                    self.welcome(answer.welcome, send)
                    beat()
                elif kind == "heartbeat_ack":
                    state["heard"] = time.monotonic()
                elif kind == "jobs":
                    self.jobs(answer.jobs, state, send)
                elif kind == "receipts":
                    self.receipts(answer.receipts.receipts)
                elif kind == "draining":
                    return
                if kind == "capacity_applied" and answer.capacity_applied.goodbye or state.get("last"):
                    state["last"] = True
                    if not self.held:
                        self.left = True
                        outgoing.put(None)
        finally:
            over.set()
            outgoing.put(None)
            call.cancel()

    def welcome(self, welcome, send):
        if self.token and not welcome.resumed:
            # That session is over: what it still owes is reported under its token.
            call = self.api.method("WorkerService", "ReportResults")
            while self.held:
                request = self.api.message("ReportResultsRequest", resume_token=self.token,
                                           results=self.results(list(self.held)))
                self.receipts(call(request, timeout=10).receipts)
            self.attach, self.taken = 1, set()
        self.token = welcome.resume_token
        if self.held:
            send(results=self.api.message("Results", results=self.results(list(self.held))))

    def jobs(self, frame, state, send):
        keys = []
        with self.lock:
            state["frame"] = frame.frame
            for job in frame.jobs:
                key = (job.lease.job_id, job.lease.attempt)
                if key in self.taken:
                    continue
                self.taken.add(key)
                self.line("begin", key)
                self.held[key] = json.dumps({"attempt": key[1], "worker": self.name})
                self.line("end", key, "ok")
                keys.append(key)
        if keys:
            send(results=self.api.message("Results", results=self.results(keys)))


def main():
    worker = Worker(*sys.argv[1:4])
    signal.signal(signal.SIGTERM, lambda *_: worker.leaving.set())
    worker.run()


if __name__ == "__main__":
    main()
