# Striate's image, for every pod of a cluster (head, workers, submitters), in two targets.
#
#   docker build --target cpu -t striate:0.1.0-cpu .
#   docker build --target gpu -t striate:0.1.0-gpu .
#
# The targets differ only in PyTorch's build. The GPU target needs no CUDA base image: PyTorch's wheels contain CUDA, and
# the node has the driver. Nothing is installed when a pod starts.

FROM python:3.11.14-slim-bookworm AS base
# ray: a user with a fixed number and a home directory; pods run as 1000:1000 and mount an emptyDir over the home. wget:
# for KubeRay's health commands where it cannot use an HTTP probe. procps: for `ray stop` and for debugging.
# openssh-client and rsync: `ray up` copies files into the container, and its autoscaler reaches other nodes by SSH.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client procps rsync wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 ray \
 && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray \
 # Older KubeRay starts commands in a login shell, which resets PATH and would not find `ray`.
 && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/striate.sh

FROM base AS build
# The installer is pinned too: it chooses the files that are installed.
RUN pip install --no-cache-dir uv==0.13.9
# copy: a hard link into a cache does not survive the copy between stages. Bytecode is compiled now, because the root file
# system is read-only later.
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN uv venv /opt/venv
WORKDIR /app
COPY pyproject.toml requirements.lock ./
# Equal to requirements.lock and to rayVersion in k8s/; a build with another Ray fails.
ARG RAY_VERSION=2.60.0

# Every version comes from the lock file. It also lists packages for tests; used as a constraint, it does not install
# them.
FROM build AS build-cpu
RUN uv pip install --torch-backend cpu --constraint requirements.lock --requirements pyproject.toml --extra train --extra serve \
 && python -c "import ray; assert ray.__version__ == '${RAY_VERSION}', ray.__version__"

FROM build AS build-gpu
RUN uv pip install --constraint requirements.lock --requirements pyproject.toml --extra train --extra serve \
 && python -c "import ray; assert ray.__version__ == '${RAY_VERSION}', ray.__version__"

# Striate itself: the `striate` command and a link to /app, which holds the only copy of the code, with `jobs/recipes/...`
# at its usual path.
FROM build AS package
COPY README.md LICENSE ./
COPY library library
COPY cluster cluster
COPY jobs jobs
COPY serve serve
RUN echo "hatchling==1.33.0" > /tmp/build.txt \
 && uv pip install --no-deps --build-constraints /tmp/build.txt --editable . \
 # By content: the files' times differ in the image.
 && python -m compileall -q --invalidation-mode unchecked-hash library cluster jobs serve

FROM base AS runtime
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH \
    # Logs are not buffered.
    PYTHONUNBUFFERED=1 \
    # The root file system is read-only; bytecode was written at build time.
    PYTHONDONTWRITEBYTECODE=1 \
    # For libraries that keep caches in the home directory.
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    # No usage reports.
    RAY_USAGE_STATS_ENABLED=0
LABEL org.opencontainers.image.title="striate" org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /app

# The large layer comes first: a change of Striate's code does not rebuild it.
FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
COPY --from=package /opt/venv/lib/python3.11/site-packages /opt/venv/lib/python3.11/site-packages
COPY --from=package /opt/venv/bin/striate /opt/venv/bin/striate
COPY --from=package /app /app
USER 1000:1000
CMD ["striate", "--help"]

FROM runtime AS gpu
# g++: torch.compile builds its kernels' launchers with it at run time.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build-gpu /opt/venv /opt/venv
COPY --from=package /opt/venv/lib/python3.11/site-packages /opt/venv/lib/python3.11/site-packages
COPY --from=package /opt/venv/bin/striate /opt/venv/bin/striate
COPY --from=package /app /app
# The NVIDIA container runtime provides computing and nvidia-smi, no graphics.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
CMD ["striate", "--help"]
