#!/usr/bin/env bash
# Trains on Google Kubernetes Engine: a JobSet on one TPU slice, or on GPU nodes.
#
#   launch/gke_jobset.sh apply  --name=NAME --image=IMAGE --bucket=BUCKET [--service-account=NAME]
#                               --tpu=tpu-v5-lite-podslice --topology=4x4 [--chips-per-host=4]
#                               --config=configs/ade20k.py [--config.FIELD=VALUE ...]
#   launch/gke_jobset.sh apply  ... --gpu=nvidia-h100-80gb --hosts=2 --gpus-per-host=8 ...
#   launch/gke_jobset.sh logs | delete  --name=NAME
#
# --dry-run prints the commands. The training flags may begin with isnet_jax.evaluate. BUCKET is mounted as runs/.
# launch/gke_jobset.yaml is what is applied, in kubectl's current context. Pods whose node is taken away and commands
# that stop with exit code 75 are started again, always; after other failures five times.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
shopt -u patsub_replacement 2>/dev/null || true

[ "$#" -gt 0 ] || usage
action="$1" && shift
case "$action" in apply | logs | delete) ;; *) mistake "there is no action $action." ;; esac

name='' image='' bucket='' service_account=default tpu='' topology='' chips='' gpu='' hosts='' gpus='' words=()
for word in "$@"; do
  case "$word" in
    *[[:cntrl:]]*) mistake "there is a line break or another control character in $word" ;;
    --dry-run) dry_run=true ;;
    --name=*) name="${word#*=}" ;;
    --image=*) image="${word#*=}" ;;
    --bucket=*) bucket="${word#*=}" && bucket="${bucket#gs://}" ;;
    --service-account=*) service_account="${word#*=}" ;;
    --tpu=*) tpu="${word#*=}" ;;
    --topology=*) topology="${word#*=}" ;;
    --chips-per-host=*) chips="${word#*=}" && require_count --chips-per-host "$chips" ;;
    --gpu=*) gpu="${word#*=}" ;;
    --hosts=*) hosts="${word#*=}" && require_count --hosts "$hosts" ;;
    --gpus-per-host=*) gpus="${word#*=}" && require_count --gpus-per-host "$gpus" ;;
    *) words+=("$word") ;;
  esac
done
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || mistake "--name=$name must be lower-case letters, digits and" \
  "hyphens, at most 40, as in --name=isnet-ade20k."
"$dry_run" || [ -n "$(command -v kubectl)" ] ||
  mistake "kubectl is not installed: see https://kubernetes.io/docs/tasks/tools."

json() {
  local text="$1"
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "$text"
}

# Puts $2 where the template says @$1@.
fill() {
  manifest="${manifest//@$1@/$2}"
}

fill_in() {
  local annotations='{}' limits selector list='' separator='' number product=1 dollar='$'
  [ -n "$image" ] || mistake "the image is missing: build it from launch/Dockerfile, push it, and give --image=IMAGE."
  [ -n "$bucket" ] || mistake "a pod's disk is lost with it: give a bucket that holds runs/, as in --bucket=my-runs."
  set_module_words ${words[@]+"${words[@]}"}
  require_copied_config
  if [ -n "$tpu" ] && [ -z "$gpu$hosts$gpus" ]; then
    [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
      mistake "--topology=$topology must be chips by chips, as in --topology=4x4."
    for number in ${topology//x/ }; do product=$((product * number)); done
    [ -n "$chips" ] || chips=$((product < 4 ? product : 4))
    [ $((product % chips)) -eq 0 ] || mistake "the $product chips of --topology=$topology cannot be split over hosts" \
      "of $chips: set --chips-per-host to what the nodes have."
    hosts=$((product / chips))
    annotations='{"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}'  # one slice, whole
    selector="{\"cloud.google.com/gke-tpu-accelerator\": $(json "$tpu"),"
    selector="$selector \"cloud.google.com/gke-tpu-topology\": \"$topology\"}"
    limits="{\"google.com/tpu\": $chips}"
  elif [ -n "$gpu" ] && [ -n "$hosts" ] && [ -n "$gpus" ] && [ -z "$tpu$topology$chips" ]; then
    selector="{\"cloud.google.com/gke-accelerator\": $(json "$gpu")}"
    limits="{\"nvidia.com/gpu\": $gpus}"
  else
    mistake "say what to run on: --tpu and --topology, or --gpu, --hosts and --gpus-per-host."
  fi

  # Kubernetes puts variables of the container where a command says $(NAME), and $ where it says $$.
  words=(python -m "${module_words[@]}")
  words=("${words[@]//$dollar/$dollar$dollar}")
  if [ -n "$gpu" ] || [ "$hosts" -eq 1 ]; then  # JAX finds by itself only the hosts of a TPU slice
    words+=("--coordinator=$name-hosts-0-0.$name:8476" "--num_processes=$hosts" "--process_id=\$(JOB_COMPLETION_INDEX)")
  fi
  for word in "${words[@]}"; do
    list="$list$separator$(json "$word")"
    separator=', '
  done

  manifest="$(cat launch/gke_jobset.yaml)"
  fill NAME "$name"
  fill ANNOTATIONS "$annotations"
  fill HOSTS "$hosts"
  fill SERVICE_ACCOUNT "$(json "$service_account")"
  fill NODE_SELECTOR "$selector"
  fill IMAGE "$(json "$image")"
  fill LIMITS "$limits"
  fill BUCKET "$(json "$bucket")"
  fill COMMAND "[$list]"
}

case "$action" in
  apply)
    fill_in
    if "$dry_run"; then
      printf "kubectl apply --filename=- <<'END'\n%s\nEND\n" "$manifest"
    else
      printf '%s\n' "$manifest" | kubectl apply --filename=-
    fi ;;
  logs)
    execute kubectl logs --follow --tail=-1 --container=isnet \
      "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  delete) execute kubectl delete "jobset/$name" ;;
esac
