#!/bin/bash
# Ends the jobs, then the daemons, of the cluster under SLURM_BASE, each by its own pid; safe to run twice.
set -u
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
base=${SLURM_BASE:-/tmp/slurm-test}
export SLURM_CONF=$base/slurm.conf
[ -d "$base/run" ] || exit 0

live() { [ -n "$1" ] && [ -d "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }
pid_of() {  # pid_of NAME COMM: of a daemon of ours that lives
    local pid
    pid=$(cat "$base/run/$1.pid" 2>/dev/null) || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && live "$pid" && echo "$pid"
}
end() {  # end NAME COMM SECONDS
    local pid tries=$(($3 * 10))
    pid=$(pid_of "$1" "$2") || return 0
    kill -TERM "$pid"
    while live "$pid" && ((tries-- > 0)); do sleep 0.1; done
    if live "$pid"; then kill -KILL "$pid"; fi
}

if pid_of slurmctld slurmctld > /dev/null; then
    timeout 5 scancel --full -u root 2>/dev/null
    for ((i = 0; i < 100; i++)); do
        [ -z "$(timeout 5 squeue -h -o %i 2>/dev/null)" ] && break
        sleep 0.1
    done
fi
# What is left in a node's UTS namespace (job processes) is ours too.
mine=$(readlink /proc/self/ns/uts)
spaces=' '
for file in "$base"/run/slurmd-*.pid; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .pid)
    pid=$(pid_of "$name" slurmd) || continue
    space=$(readlink "/proc/$pid/ns/uts")
    [ "$space" = "$mine" ] || spaces+="$space "
    end "$name" slurmd 5
done
for process in /proc/[0-9]*; do
    [ "$spaces" != ' ' ] && space=$(readlink "$process/ns/uts" 2>/dev/null) || continue
    case "$spaces" in *" $space "*) kill -KILL "${process#/proc/}" 2>/dev/null ;; esac
done
end slurmctld slurmctld 10
end munged munged 5
exit 0
