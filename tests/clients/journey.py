"""A client and a worker in Python that know nothing of leasehold but its address: all messages come by reflection.

Enqueues jobs, runs them over LeaseJobs, and reads their results. Prints one line for each thing it has seen; exits
with 1 and the reason when something is not as promised.
"""

import queue
import sys
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PACKAGE = "leasehold.v1."
JOBS = 20


class Api:
    """The server's services and messages, as reflection tells them."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def message(self, name, **fields):
        descriptor = self.pool.FindMessageTypeByName(PACKAGE + name)
        return message_factory.GetMessageClass(descriptor)(**fields)

    def method(self, service, name):
        descriptor = self.pool.FindServiceByName(PACKAGE + service)
        method = descriptor.methods_by_name[name]
        answer = message_factory.GetMessageClass(method.output_type)
        path = f"/{PACKAGE}{service}/{name}"
        kind = self.channel.stream_stream if method.client_streaming else self.channel.unary_unary
        return kind(path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString)


def services(channel):
    """Both versions of reflection, as old and new tools ask for them."""
    for version in ("v1", "v1alpha"):
        list_services = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        listed = next(list_services(iter([b"\x3a\x01*"]), timeout=10))
        for name in (b"leasehold.v1.JobService", b"leasehold.v1.QueueService", b"leasehold.v1.WorkerService", b"grpc.health.v1.Health"):
            assert name in listed, f"{version} lists {name}"
        # The details of errors are messages of another package, which a tool must be able to look up, too.
        details = b"google.rpc.ErrorInfo"
        found = next(list_services(iter([b"\x22" + bytes([len(details)]) + details]), timeout=10))
        assert b"PreconditionFailure" in found, f"{version} knows the details of errors"
    print("services listed")


def healthy(channel):
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for service in ("", "leasehold.v1.JobService", "leasehold.v1.QueueService", "leasehold.v1.WorkerService"):
        request = bytes([0x0A, len(service)]) + service.encode() if service else b""
        assert check(request, timeout=10) == b"\x08\x01", f"{service} is SERVING"
    print("serving")


def refused(api):
    try:
        api.method("JobService", "Enqueue")(api.message("EnqueueRequest"), timeout=10)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata()), "details"
        print("refused")
    else:
        raise AssertionError("an empty request is refused")


def enqueue(api):
    call = api.method("JobService", "Enqueue")
    ids = []
    for n in range(JOBS):
        spec = api.message("JobSpec", queue="python", kind="double", payload=api.message("Payload", text=str(n)))
        ids.append(call(api.message("EnqueueRequest", job=spec), timeout=10).job.id)
    assert len(set(ids)) == JOBS
    print("enqueued", JOBS)
    return ids


class Worker:
    """A worker as the rules of the stream have it, one message at a time. Half-way its stream is cut, and it goes on."""

    def __init__(self, api):
        self.api = api
        self.token = b""
        self.streams = 0
        self.taken = set()
        self.owed = {}  # results without a receipt, by lease
        self.recorded = 0

    def run(self):
        while self.recorded < JOBS:
            code = self.stream(cut_at=JOBS // 2 if self.streams == 0 else None)
        assert code == grpc.StatusCode.OK, code
        assert self.streams == 2 and self.recorded == JOBS
        print("recorded", self.recorded)

    def stream(self, cut_at):
        api, outgoing = self.api, queue.Queue()
        send = lambda **message: outgoing.put(api.message("LeaseJobsRequest", **message))
        self.streams += 1
        hello = api.message("Hello", protocol=1, worker="python", kinds=["double"], max_in_flight=4, sdk="by hand",
                            queues=[api.message("QueueSubscription", queue="python")],
                            resume_token=self.token, attach_sequence=self.streams,
                            held=[result.lease for result in self.owed.values()])
        send(hello=hello)
        beats, said_goodbye = 0, False
        stream = api.method("WorkerService", "LeaseJobs")(iter(outgoing.get, None), timeout=60)
        for answer in stream:
            kind = answer.WhichOneof("message")
            if kind == "welcome":
                assert answer.welcome.resume_token and answer.welcome.lease_ttl.seconds == 30
                assert answer.welcome.resumed == bool(self.token), "a token goes on with its session"
                assert self.token in (b"", answer.welcome.resume_token)
                self.token = answer.welcome.resume_token
                beats += 1
                send(heartbeat=api.message("Heartbeat", sequence=beats, held=hello.held))
                if self.owed:
                    send(results=api.message("Results", results=list(self.owed.values())))
            elif kind == "heartbeat_ack":
                assert answer.heartbeat_ack.sequence == beats
                print("renewed")
            elif kind == "jobs":
                assert len(answer.jobs.jobs) <= 4, "never more than the window"
                results = []
                for job in answer.jobs.jobs:
                    key = (job.lease.job_id, job.lease.attempt)
                    assert key not in self.taken, "each attempt comes once"
                    self.taken.add(key)
                    output = api.message("Payload", text=str(2 * int(job.payload.text)))
                    success = api.message("Success", output=output)
                    # The last words go with the result; no level is INFO, 1 is DEBUG.
                    lines = [api.message("LogLine", message=f"doubling {job.payload.text}"),
                             api.message("LogLine", message="done", level=1)]
                    log = api.message("LogLines", first=1, lines=lines)
                    self.owed[key] = api.message("Result", lease=job.lease, success=success, log=log)
                    results.append(self.owed[key])
                # A slot is free as soon as its Result has arrived there, which is before its receipt is here.
                send(results=api.message("Results", results=results))
            elif kind == "receipts":
                for receipt in answer.receipts.receipts:
                    assert receipt.status == 1, f"RECORDED, not {receipt}"
                    # A copy of a result has its own receipt.
                    if self.owed.pop((receipt.lease.job_id, receipt.lease.attempt), None) is not None:
                        self.recorded += 1
                if cut_at is not None and self.recorded >= cut_at:
                    stream.cancel()
                    print("cut")
                    return None
                if self.recorded == JOBS and not said_goodbye:
                    said_goodbye = True
                    send(goodbye=api.message("Goodbye"))
            elif kind == "capacity_applied" and answer.capacity_applied.goodbye:
                outgoing.put(None)  # half-close
        return stream.code()


def results(api, ids):
    call = api.method("JobService", "GetJob")
    for n, job_id in enumerate(ids):
        request = api.message("GetJobRequest", job_id=job_id)
        request.wait.seconds = 10
        job = call(request, timeout=20).job
        assert (job.state, job.output.text, job.attempt, job.worker) == (4, str(2 * n), 1, "python"), job
        log = [(line.number, line.level, line.message) for line in job.log]
        assert log == [(1, 2, f"doubling {n}"), (2, 1, "done")] and job.log_dropped == 0, log
    print("results", len(ids))


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    grpc.channel_ready_future(channel).result(timeout=30)
    api = Api(channel)
    begun = time.monotonic()
    services(channel)
    healthy(channel)
    refused(api)
    ids = enqueue(api)
    Worker(api).run()
    results(api, ids)
    print(f"done in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
