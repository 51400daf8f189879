#!/usr/bin/env bash
# PRIME on a Slurm cluster:  sbatch examples/prime_70b.sh [CONFIG [section.key=value ...]]
# The default is 16 nodes of 8 H100; sbatch options change the resources, and CONFIG can be any configuration:
#   sbatch --nodes=4 examples/prime_70b.sh examples/prime_7b.toml policy.lr=1e-6
# With SERVER_NODES the last nodes have no ranks, but SGLang servers that sample while the others train:
#   SERVER_NODES=2 sbatch examples/prime_70b.sh examples/prime_70b_overlap.toml
# Run megatron-prime check CONFIG and megatron-prime plan CONFIG first. Logs: logs/prime-JOB/START/, one file per rank.
# Near its time limit the run saves and is requeued. A lost rank or node loses the steps since the last checkpoint.
#SBATCH --job-name=prime
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
# All the memory of a node: the default of many clusters is a few GiB per core. `megatron-prime plan` prints what a
# node needs, 643 GiB for prime_70b.toml; --exclusive alone would give no more than the default.
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=prime-%j.log
set -uo pipefail
cd "$SLURM_SUBMIT_DIR"
config=${1:-examples/prime_70b.toml}
shift || true
python=${PYTHON:-.venv/bin/python}
restart=${SLURM_RESTART_COUNT:-0}
logs=logs/prime-$SLURM_JOB_ID/$restart
last=logs/prime-$SLURM_JOB_ID/$((restart - 1))
mkdir -p "$logs"

# Rank 0's node is the rendezvous. The port changes per attempt, since an orphaned process may still hold the last one.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
servers=${SERVER_NODES:-0}
training=$((SLURM_NNODES - servers))
ranks=$((training * ${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_NNODES))}))
export MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + (SLURM_JOB_ID * 16 + restart) % 20000))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 CUDA_DEVICE_MAX_CONNECTIONS=1
export MEGATRON_PRIME_STOP_FILE=$PWD/$logs/stop
# The record of this start (run_dir/provenance) says how the last one ended.
MEGATRON_PRIME_LAST_END=$(cat "$last/end" 2>/dev/null)
export MEGATRON_PRIME_LAST_END

# Slurm's signal before the time limit or a preemption becomes a file, on which the ranks save and exit with code 75.
# A cluster that announces preemptions by SIGTERM signals the ranks directly. SIGTERM ends this script, which therefore
# never queues a job again that was cancelled by scancel.
trap 'touch "$MEGATRON_PRIME_STOP_FILE"' USR1

# srun must be told what sbatch was told:
# - GPUs: a step has none of those that --exclusive brought. Every rank must see all GPUs of its node (--gpus-per-task and
#   --gpu-bind would hide others), because the SGLang servers that local rank 0 starts use all of them.
# - Cores: without --whole, a step of some clusters has one per task, because --cpus-per-task is not handed on since
#   Slurm 22.05. Ranks are not bound to cores, because the servers, with a scheduler process per GPU, are children of
#   local rank 0 and would have its few cores.
# - Ranks: those of a node are numbered consecutively, whatever the cluster's default is.
unset SLURM_GPUS SLURM_GPUS_PER_TASK SLURM_GPUS_PER_SOCKET SLURM_GPU_BIND SLURM_NTASKS_PER_GPU
unset SLURM_TRES_PER_TASK SLURM_TRES_BIND SLURM_EXACT
gpus=${SLURM_GPUS_ON_NODE:+--gpus-per-node=$SLURM_GPUS_ON_NODE}

echo "$(date '+%F %T') start $restart of $config on $SLURM_JOB_NODELIST ($ranks ranks), logs in $logs"
if ((servers)); then
    # Servers of their own nodes are not the ranks' children: this step starts again those that end. The run attaches to
    # them by address, with a key that nobody else can read.
    (umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' > "$logs/server.key")
    urls=$("$python" tools/rollout_servers.py "$config" "$@" --urls "${nodes[@]:training}") || exit
    srun --nodes="$servers" --ntasks="$servers" --ntasks-per-node=1 --relative="$training" $gpus --whole \
        --cpu-bind=none --output="$logs/servers-%t.log" bash -c 'exec "$@" --host "$SLURMD_NODENAME"' servers \
        "$python" tools/rollout_servers.py "$config" "$@" --key-file "$logs/server.key" &
    server_step=$!
    set -- "$@" "$urls" "rollout.sglang.api_key_file=$logs/server.key"
fi
srun --kill-on-bad-exit=1 --nodes="$training" --ntasks="$ranks" --relative=0 $gpus --whole --cpu-bind=none \
    --distribution=block --output="$logs/rank-%t.log" bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
    export LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
    # Processes that the kernel has killed for want of memory: in this cgroup, or on a node without cgroups.
    oom_kills() {
        grep -h "^oom_kill " "/sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup)/memory.events.local" \
            "/sys/fs/cgroup/memory$(sed -n "s/^[0-9]*:memory://p" /proc/self/cgroup)/memory.oom_control" \
            /proc/vmstat 2>/dev/null | head -n 1
    }
    kills=$(oom_kills)
    trap : TERM INT   # the program handles these signals; this shell must keep waiting
    "$@"; code=$?
    # Nothing but this counter tells such a SIGKILL from any other one.
    if ((code == 137)) && [[ $(oom_kills) != "$kills" ]]; then
        echo "megatron-prime, rank $RANK: killed by the kernel: out of host memory on $(hostname)" >&2
        code=71
    fi
    # The first rank to end records its code. A rank that lost another one (69) lets that one record its code first.
    ((code == 69)) && sleep 3
    ((code)) && set -C && { echo $code > "$MEGATRON_PRIME_STOP_FILE.code"; } 2>/dev/null
    exit $((code == 75 ? 0 : code))   # with 75, srun would kill ranks that are still exiting' rank \
    "$python" -m megatron_prime train "$config" "$@" &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done   # a signal interrupts `wait`, but not the ranks
((servers)) && kill "$server_step" && wait "$server_step"
record=$(cat "$MEGATRON_PRIME_STOP_FILE.code" 2>/dev/null)
code=${record:-$code}
# Where all processes of a node were killed for want of memory, none has recorded a code, but Slurm says so.
if [[ $code != 0 && (-z $record || $code -gt 128) ]] &&
    grep -qsE 'oom.kill event|exceeded .*memory limit' "$logs"/rank-*.log; then
    code=71
fi

# 0: finished. 75: asked to stop. 69 or over 128: a rank or node was lost. 71: out of memory, which another start may
# survive, but not if the last one ended alike. Else: an error that a restart would repeat.
"$python" tools/run_summary.py "$logs" --exit-code "$code" | tee "$logs/end"
if ((code == 71)) && grep -qs '^ended with exit code 71:' "$last/end"; then
    echo "out of memory twice in a row: not queued again. Change what the lines above name, or the resources of the job"
elif ((code == 75 || code == 69 || code == 71 || code > 128)) && ((restart < ${MAX_RESTARTS:-50})); then
    echo "$(date '+%F %T') queued again"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
