"""A batch whose jobs may need more memory than they were given: each is tried again with twice as much.

    python batch_memory_limit.py [STORE [IMAGE]]

The image needs Python 3. Needs root, or a control group that was delegated to the user.
"""

import debian_images as debian

import gpucontainer

MIB = 1 << 20
# A job says how many mebibytes it touches.
JOBS = {"small": 10, "large": 150}
SCRIPT = "import sys; data = b'x' * (int(sys.argv[1]) << 20); print(len(data) >> 20, 'MiB done')"

store, name = debian.arguments()
image = name or debian.image(store, "python3")

for job, size in JOBS.items():
    limit = 64 * MIB
    while True:
        done = gpucontainer.run(
            image,
            ["python3", "-c", SCRIPT, str(size)],
            store=store,
            # No swap: a job that is over its limit ends at once instead of becoming slow.
            limits=gpucontainer.Limits(memory=limit, swap=0),
            capture_output=True,
            text=True,
        )
        if not done.oom_killed:
            break
        # Not a guess from exit code 137: the kernel says whether the limit was the reason.
        print(f"{job}: killed at its limit of {limit // MIB} MiB")
        limit *= 2
    done.check_returncode()
    assert done.usage is not None and done.usage.memory_peak is not None
    print(f"{job}: {done.stdout.strip()} with a limit of {limit // MIB} MiB, peak {done.usage.memory_peak // MIB} MiB")
