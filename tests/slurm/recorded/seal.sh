#!/bin/bash
#SBATCH --job-name="ffhq 64.import.seal"
#SBATCH --comment="entroloop 0123456789ab import.seal 0 1"
#SBATCH --chdir=/home/ann/entroloop
#SBATCH --output="/scratch/lab/it's mine/ffhq 64/slurm/logs/import.seal-%j.log"
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --qos=normal
#SBATCH --constraint=a100|h100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=480G
#SBATCH --time=1-12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --exclusive
#
# import.seal of the run ffhq 64, written by `entroloop slurm`.
set -euo pipefail

run='/scratch/lab/it'"'"'s mine/ffhq 64'
record="$run/slurm/attempts/import.seal"
mkdir -p "$run/slurm/attempts"

# -- environment ---------------------------------------------------------------------------------------------------
set +u  # module and conda functions use variables that are not set
module load cuda/12
source "$HOME/env/bin/activate"
set -u
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not inherit it

# -- the state of this attempt, for `entroloop status` -------------------------------------------------------------
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"

note() {  # note STATE REASON
    printf '%s\t%s\t%s\t%s\n' "$1" "$job" "$(hostname -s)" "$2" > "$record.tmp-$SLURM_JOB_ID"
    mv "$record.tmp-$SLURM_JOB_ID" "$record"
    printf '%s  job %s on %s: %s%s\n' "$(date '+%F %T')" "$job" "$(hostname -s)" "$1" "${2:+: $2}"
}

again() {  # again REASON: queue this job again, unless it is being cancelled, or requeued by the cluster itself
    trap '' USR1 TERM
    if [[ "$(scontrol show job "$SLURM_JOB_ID")" != *JobState=RUNNING* ]]; then
        note interrupted "$1"
        exit 75
    fi
    note requeued "$1"
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        note interrupted "$1; this cluster does not let jobs requeue themselves: submit again"
    fi
    exit 75
}

# -- the work ------------------------------------------------------------------------------------------------------
work() {
    exec srun --kill-on-bad-exit=1 --nodes=1 --ntasks=1 apptainer exec --nv image.sif python -m entroloop.launcher "$@"
}

signalled=''
caught() {  # pass the signal on to the work, which saves its state and ends
    signalled=$1
    passed=yes
    [ -z "$step" ] || kill -s "$1" "$step" 2>/dev/null || true
}
step=''
trap 'caught USR1' USR1
trap 'caught TERM' TERM

note running ''
work seal x &
step=$!
[ -z "$signalled" ] || caught "$signalled"
passed=yes
while [ -n "$passed" ]; do  # a signal ends the wait early: wait again
    passed=''
    status=0
    wait "$step" || status=$?
done

# -- what becomes of the job ---------------------------------------------------------------------------------------
if [ "$status" = 0 ]; then
    rm -f "$record.failures"
    note finished ''
    # The window had no room for the whole chain: submit the next jobs.
    apptainer exec --nv image.sif python -m entroloop.launcher slurm submit 'a b.yaml' || echo 'submit again to go on'
    exit 0
fi
outcome=$(sed -n 's/^  "status": "\(.*\)",*$/\1/p' "$record.json" 2>/dev/null || true)
reason=$(sed -n 's/^  "reason": "\(.*\)",*$/\1/p' "$record.json" 2>/dev/null || true)
if [[ "$(scontrol show job "$SLURM_JOB_ID")" =~ PreemptTime=[0-9] ]]; then
    signalled=preemption
fi
if [ -n "$signalled" ]; then  # a signal ended it; the next attempt shows whether its state was saved
    again "stopped by $signalled: ${reason:-$outcome}"
fi
reason="${reason:-ended with status $status}"
if [ "$outcome" = failed ] && grep -q '"exit": 2' "$record.json"; then
    note failed "$reason"  # a new attempt would meet the same wrong input
    exit 2
fi
printf '%s\n' "$reason" >> "$record.failures"
failures=$(wc -l < "$record.failures")
if [ "$failures" -le 2 ]; then
    again "failure $failures of 3: $reason"
fi
note failed "$reason ($failures times)"
exit 1
