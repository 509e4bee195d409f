"""Speed, measured: prompt reading, writing, many conversations and memory, alone or beside other runtimes.

    plan.py       options -> the rows of the report and the command that measures each
    protocol.py   the worker's side of the pipe: a loaded model obeys commands, one JSON line each
    worker.py     our worker;  peers/  one worker for each other runtime
    pipe.py       the parent's side: a worker is started, asked, stopped
    measure.py    subjects take turns, command by command
    report.py     seconds -> rates, ratios, gigabytes a second

Nothing is imported here: a peer's worker runs in an interpreter that may have neither torch nor what else we need.
"""
