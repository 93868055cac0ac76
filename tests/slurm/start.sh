#!/bin/bash
# A private SLURM cluster on this machine, up in seconds: munged, slurmctld and NODES slurmd, each with a host name of
# its own. Needs root and Debian's packages munge and slurm-wlm. Everything lies under SLURM_BASE; stop.sh ends it.
# Environment: SLURM_BASE (/tmp/slurm-test) NODES (2) CPUS (4) GPUS (2, fake) PORT (16800, the first of some ports)
# MAX_ARRAY (1001) OWNER (a pid: with it the cluster ends too, and its folder goes).
# Partitions: `debug` (default), `urgent` (preempts debug) and `big`: four nodes that claim 128 cores and eight GPUs,
# to try whether a cluster would take a script.
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
base=${SLURM_BASE:-/tmp/slurm-test} nodes=${NODES:-2} cpus=${CPUS:-4} gpus=${GPUS:-2} port=${PORT:-16800}
host=$(hostname -s)
export SLURM_CONF=$base/slurm.conf

fail() {
    echo "the test cluster did not start: $1" >&2
    tail -n 5 "$base"/log/*.log >&2
    exit 1
}
await() {  # await SECONDS COMMAND…
    local tries=$(($1 * 10))
    shift
    while ((tries-- > 0)); do
        "$@" && return 0
        sleep 0.1
    done
    return 1
}
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
idle() { [ "$(timeout 5 sinfo -h -p debug,big -N -o '%N %T' 2>/dev/null | grep -c ' idle$')" = $((nodes + 4)) ]; }

listening "$port" && { echo "port $port is taken: set PORT" >&2; exit 1; }
mkdir -p "$base"/{run,log,state,munge,dev}
chmod 755 "$base" "$base/run"
chmod 700 "$base/munge"
[ -s "$base/munge/key" ] || mungekey -c -k "$base/munge/key"
echo "127.0.0.1 localhost $host" > "$base/hosts"
described=''
for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$base/spool/n$i"
    echo "127.0.1.$i n$i" >> "$base/hosts"
    described+="NodeName=n$i NodeAddr=127.0.1.$i Port=$((port + i)) CPUs=$cpus RealMemory=8000 Gres=gpu:$gpus"$'\n'
done
big=''
for ((i = 1; i <= 4; i++)); do
    mkdir -p "$base/spool/big$i"
    echo "127.0.1.$((100 + i)) big$i" >> "$base/hosts"
    big+="NodeName=big$i NodeAddr=127.0.1.$((100 + i)) Port=$((port + 10 + i)) CPUs=128 RealMemory=500000 Gres=gpu:8"$'\n'
done
# GPUs that look like /dev/null, so that jobs get CUDA_VISIBLE_DEVICES
for ((i = 0; i < 8; i++)); do [ -c "$base/dev/gpu$i" ] || mknod "$base/dev/gpu$i" c 1 3; done
cat > "$base/gres.conf" <<EOF
NodeName=n[1-$nodes] Name=gpu File=$base/dev/gpu[0-$((gpus - 1))]
NodeName=big[1-4] Name=gpu File=$base/dev/gpu[0-7]
EOF
cat > "$base/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# short-lived credentials: a requeued job starts again after seconds instead of two minutes
AuthInfo=socket=$base/run/munge.socket,cred_expire=5
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd-%n.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=${MAX_ARRAY:-1001}
MinJobAge=3600
KillWait=5
SlurmdTimeout=120
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
${described}${big}PartitionName=debug Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-$nodes] MaxTime=INFINITE PriorityTier=10
PartitionName=big Nodes=big[1-4] MaxTime=INFINITE
EOF

munged --socket="$base/run/munge.socket" --key-file="$base/munge/key" --pid-file="$base/run/munged.pid" \
    --log-file="$base/log/munged.log" --seed-file="$base/munge/seed" --num-threads=10 \
    < /dev/null > /dev/null 2>> "$base/log/munged.log" || fail munged
slurmctld < /dev/null > /dev/null 2>> "$base/log/slurmctld.log" || fail slurmctld
await 30 listening "$port" || fail slurmctld
# Each slurmd has a host name and an /etc/hosts of its own (UTS and mount namespaces).
for node in $(seq -f 'n%g' "$nodes") big1 big2 big3 big4; do
    # shellcheck disable=SC2016
    unshare --uts --mount --propagation private \
        sh -c 'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -N "$1"' sh "$node" "$base/hosts" \
        < /dev/null > /dev/null 2>> "$base/log/slurmd-$node.log" || fail "slurmd of $node"
done
await 60 idle || fail "its nodes are not idle"
if [ -n "${OWNER:-}" ]; then  # the cluster ends with this process, however that ends
    # shellcheck disable=SC2016
    setsid sh -c 'while kill -0 "$1"; do sleep 1; done; bash "$2" && rm -rf "$3"' \
        sh "$OWNER" "$(dirname "$0")/stop.sh" "$base" < /dev/null > /dev/null 2>&1 &
fi
echo "$nodes nodes are idle: export SLURM_CONF=$SLURM_CONF"
