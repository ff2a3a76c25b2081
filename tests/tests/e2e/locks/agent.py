"""A process that opens and locks files as it is told: one command a line, one answer a line."""
import errno, fcntl, os, signal, sqlite3, struct, sys

FILES = {}
KINDS = {"SH": fcntl.F_RDLCK, "EX": fcntl.F_WRLCK, "UN": fcntl.F_UNLCK}
NAMES = {number: name for name, number in KINDS.items()}
FLOCK = "hhqqi4x"  # struct flock where off_t has 64 bits


def interrupted(number, frame):
    raise InterruptedError(errno.EINTR, "a signal came")


def posix(command, fd, kind, start, length):
    lock = struct.pack(FLOCK, KINDS[kind], os.SEEK_SET, int(start), int(length), 0)
    kind, _, start, length, pid = struct.unpack(FLOCK, fcntl.fcntl(fd, command, lock))
    return " ".join(map(str, (NAMES[kind], start, length, pid)))


def count(path, times, kind):
    """Adds one to the number in a file, again and again, under an exclusive lock of the file beside it."""
    for _ in range(int(times)):
        with open(path + ".lock", "r+b") as lock:
            (fcntl.flock if kind == "flock" else fcntl.lockf)(lock, fcntl.LOCK_EX)
            with open(path, "rb") as file:
                number = int(file.read())
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, b"%d" % (number + 1))
            os.fsync(fd)
            os.close(fd)


def count_in_place(path, times, kind):
    """The same in a file that stays open and is itself what is locked."""
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    fd = os.open(path, os.O_RDWR)
    for _ in range(int(times)):
        lock(fd, fcntl.LOCK_EX)
        number = int(os.pread(fd, 20, 0))
        os.pwrite(fd, b"%d" % (number + 1), 0)
        lock(fd, fcntl.LOCK_UN)
    os.close(fd)


def fill(path, rows):
    """Adds rows to a table and counts them in another; a connection lives for five transactions."""
    for row in range(int(rows)):
        if row % 5 == 0:
            database = sqlite3.connect(path, timeout=140, isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO t VALUES (?)", (row,))
        database.execute("UPDATE sum SET n = n + 1")
        database.execute("COMMIT")
        if row % 5 == 4:
            database.close()


def obey(verb, *words):
    if verb == "open":
        name, mode, path = words
        flags = {"r": os.O_RDONLY, "rw": os.O_RDWR}[mode]
        FILES[name] = os.open(path, flags)
    elif verb == "close":
        os.close(FILES.pop(words[0]))
    elif verb == "dup":
        FILES[words[1]] = os.dup(FILES[words[0]])
    elif verb == "flock":
        operation = 0
        for word in words[1:]:
            operation |= getattr(fcntl, "LOCK_" + word)
        fcntl.flock(FILES[words[0]], operation)
    elif verb in ("setlk", "setlkw"):
        command = fcntl.F_SETLK if verb == "setlk" else fcntl.F_SETLKW
        posix(command, FILES[words[0]], *words[1:])
    elif verb == "getlk":
        return posix(fcntl.F_GETLK, FILES[words[0]], *words[1:])
    elif verb == "alarm":
        signal.signal(signal.SIGALRM, interrupted)
        signal.setitimer(signal.ITIMER_REAL, float(words[0]))
    elif verb == "spawn":
        # A child that inherits the descriptor over exec, until it is told to end.
        fd = FILES[words[0]]
        os.set_inheritable(fd, True)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.execvp("sleep", ["sleep", "120"])
        return str(child)
    elif verb == "reap":
        os.kill(int(words[0]), signal.SIGKILL)
        os.waitpid(int(words[0]), 0)
    elif verb == "count":
        count(*words)
    elif verb == "count_in_place":
        count_in_place(*words)
    elif verb == "fill":
        fill(*words)
    return "ok"


for line in sys.stdin:
    try:
        answer = obey(*line.split())
    except OSError as error:
        answer = errno.errorcode[error.errno].replace("EDEADLOCK", "EDEADLK")
    except sqlite3.Error as error:
        answer = str(error)
    print(answer, flush=True)
