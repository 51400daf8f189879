#!/usr/bin/env bash
# PRIME on a Slurm cluster:  sbatch examples/prime_70b.sh [CONFIG [section.key=value ...]]
# The default is 16 nodes of 8 H100; sbatch options change the resources, and CONFIG can be any configuration:
#   sbatch --nodes=4 examples/prime_70b.sh examples/prime_7b.toml policy.lr=1e-6
# Run megatron-prime check CONFIG and megatron-prime plan CONFIG first. Logs: logs/prime-JOB/START/, one file per rank.
# Near its time limit the run saves and is requeued. A lost rank or node loses the steps since the last checkpoint.
#SBATCH --job-name=prime
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
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
mkdir -p "$logs"

# Rank 0's node is the rendezvous. The port changes per attempt, since an orphaned process may still hold the last one.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + (SLURM_JOB_ID * 16 + restart) % 20000))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 CUDA_DEVICE_MAX_CONNECTIONS=1
export MEGATRON_PRIME_STOP_FILE=$PWD/$logs/stop

# Slurm's signal before the time limit or a preemption becomes a file, on which the ranks save and exit with code 75.
# A cluster that announces preemptions by SIGTERM signals the ranks directly. SIGTERM ends this script, which therefore
# never queues a job again that was cancelled by scancel.
trap 'touch "$MEGATRON_PRIME_STOP_FILE"' USR1

echo "$(date '+%F %T') start $restart of $config on $SLURM_JOB_NODELIST ($SLURM_NTASKS ranks), logs in $logs"
srun --kill-on-bad-exit=1 --output="$logs/rank-%t.log" bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_NNODES))}
    trap : TERM INT   # the program handles these signals; this shell must keep waiting
    "$@"; code=$?
    # The first rank to end records its code. A rank that lost another one (69) lets that one record its code first.
    ((code == 69)) && sleep 3
    ((code)) && set -C && { echo $code > "$MEGATRON_PRIME_STOP_FILE.code"; } 2>/dev/null
    exit $((code == 75 ? 0 : code))   # with 75, srun would kill ranks that are still exiting' rank \
    "$python" -m megatron_prime train "$config" "$@" &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done   # a signal interrupts `wait`, but not the ranks
[[ -s $MEGATRON_PRIME_STOP_FILE.code ]] && code=$(<"$MEGATRON_PRIME_STOP_FILE.code")

# 0: finished. 75: asked to stop. 69 or over 128: a rank or node was lost. Else: an error that a restart would repeat.
"$python" tools/run_summary.py "$logs" --exit-code "$code"
if ((code == 75 || code == 69 || code > 128)) && ((restart < ${MAX_RESTARTS:-50})); then
    echo "$(date '+%F %T') queued again"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
