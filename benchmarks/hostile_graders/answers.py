"""Graders whose answer is no reward, and that write to the channel of answers themselves."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import RUNTIME, TIMES, UNRESPONSIVE, Hostile

ANSWERS = [
    Hostile(
        "printing much", "print('x' * 10**7); print('x' * 10**7, file=sys.stderr); os.write(2, b'x' * 10**6)", None
    ),
    Hostile("a huge return value", "return 'x' * 10**7", "grade returned str, not a number"),
    Hostile("a huge number", "return 10 ** 5000", "OverflowError"),
    Hostile("a huge error", "raise ValueError('x' * 10**7)", "ValueError: xxx"),
    Hostile("an error that is no text", "raise ValueError('\\ud800\\0')", "ValueError: ?"),
    Hostile(
        "an error without text",
        """
        class Bad(Exception):
            def __str__(self): raise SystemExit
            __repr__ = __str__
        raise Bad()
        """,
        "Bad: <exception str() failed>",
    ),
    Hostile(
        "a type without name",
        """
        class Meta(type):
            @property
            def __name__(self): raise KeyError("name")
        class Bad(metaclass=Meta): pass
        return Bad()
        """,
        "KeyError",
    ),
    Hostile(
        "an object that pickles to a command",
        """
        class Bad:
            def __reduce__(self): return os.system, ("touch /tmp/@MARK@",)
        return Bad()
        """,
        "grade returned Bad, not a number",
    ),
    Hostile("nothing", "return None", "grade returned NoneType, not a number"),
    Hostile("complex", "return 1j", "grade returned complex, not a number"),
    Hostile("a list, deep", "x = []\nfor _ in range(10**5): x = [x]\nreturn x", "grade returned list, not a number"),
    Hostile("no number", "return float('nan')", "nan, not a finite number", UNRESPONSIVE),
    Hostile("infinity", "return 1e308 * 10", "inf, not a finite number", UNRESPONSIVE),
    Hostile("less than any number", "return float('-inf')", "-inf, not a finite number", UNRESPONSIVE),
    Hostile("more than any number", "return 1e400", "inf, not a finite number", UNRESPONSIVE),
    Hostile("a number of 100,000 digits", "return 10 ** 10**5", "OverflowError"),
    Hostile("a list", "return [1.0]", "grade returned list, not a number"),
    Hostile("an array", "import numpy; return numpy.ones(3)", "TypeError"),
    Hostile("true", "return True", None),
    Hostile("closing the channel", "os.closerange(3, 256); time.sleep(10**6)", "the code closed the grader's channel"),
    Hostile("closing the channel and going on", "os.closerange(3, 256)", "the grader's process died (exit code 1)"),
    Hostile(
        "a forged answer to no call", 'channel().sendall(b\'{"call": "0", "reward": 1}\\n\')', "an answer to no call"
    ),
    Hostile(
        "an answer that is no JSON",
        "channel().sendall(b'\\x80\\x04N.\\n')",
        "wrote to the grader's channel, and no answer",
    ),
    Hostile("an answer of nested lists", "channel().sendall(b'[' * 60_000 + b'\\n')", "wrote to the grader's channel"),
    Hostile(
        "an answer of other fields", 'channel().sendall(b\'{"call": "0", "x": 1}\\n\')', "wrote to the grader's channel"
    ),
    Hostile(
        "an answer without end", "while True: channel().sendall(b'x' * 4096)", "answered with more than 65536 bytes"
    ),
    Hostile("half an answer", "channel().sendall(b'{'); time.sleep(10**6)", TIMES),
    Hostile("passing descriptors", "socket.send_fds(channel(), [b'x'], [0, 1, 2]); time.sleep(10**6)", TIMES),
    Hostile(
        "a forged answer to its own call",
        """
        number = inspect.currentframe().f_back.f_locals["number"].decode()
        channel().sendall(json.dumps({"call": number, "reward": 10**4000}).encode() + b"\\n")
        time.sleep(10**6)
        """,
        "not a finite number",
        UNRESPONSIVE,
        recovers=False,
    ),
    *(
        Hostile(
            f"{name}, forged",
            f"""
            number = inspect.currentframe().f_back.f_locals["number"].decode()
            channel().sendall(b'{{"call": "' + number.encode() + b'", "reward": ' + {reward} + b'}}\\n')
            time.sleep(10**6)
            """,
            error,
            flag,
            recovers=False,
        )
        for name, reward, error, flag in [
            ("more than any number", "b'1e400'", "inf, not a finite number", UNRESPONSIVE),
            ("no number", "b'NaN'", "nan, not a finite number", UNRESPONSIVE),
            ("a number of 60,000 digits", "b'9' * 60_000", "wrote to the grader's channel, and no answer", RUNTIME),
            ("a list", "b'[1.0]'", "wrote to the grader's channel, and no answer", RUNTIME),
            (
                "lists, 10,000 deep",
                "b'[' * 10**4 + b']' * 10**4",
                "wrote to the grader's channel, and no answer",
                RUNTIME,
            ),
        ]
    ),
    Hostile(
        "two answers",
        """
        number = inspect.currentframe().f_back.f_locals["number"].decode()
        channel().sendall(json.dumps({"call": number, "reward": 1}).encode() + b"\\n")
        """,
        None,
        recovers=False,
    ),
    Hostile("changed internals", "json.dumps = lambda *a: 'x' * 10", "wrote to the grader's channel", recovers=False),
    Hostile(
        "internals that loop",
        """
        def forever(*a):
            while True: pass
        sys.modules["__main__"].describe = forever
        raise ValueError
        """,
        TIMES,
    ),
    Hostile("changed sample and item", "sample.clear(); item['calm'] = False; item['x'] = sample", None),
    Hostile("reading the next call", "channel().recv(1)", TIMES),
]
