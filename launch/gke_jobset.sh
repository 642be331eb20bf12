#!/usr/bin/env bash
# Trains on Google Kubernetes Engine: a JobSet on one TPU slice, or on GPU nodes.
#
#   launch/gke_jobset.sh apply  --name=NAME --image=IMAGE --bucket=BUCKET [--service-account=NAME]
#                               --tpu=tpu-v5-lite-podslice --topology=4x4 [--chips-per-host=4]
#                               --config=configs/ade20k.py [--config.FIELD=VALUE ...]
#   launch/gke_jobset.sh apply  ... --gpu=nvidia-h100-80gb --hosts=2 --gpus-per-host=8 ...
#   launch/gke_jobset.sh logs | delete  --name=NAME
#
# --dry-run prints the commands. To evaluate, put isnet_jax.evaluate before the training flags. BUCKET is mounted as
# runs/. The manifest, launch/gke_jobset.yaml, is applied in kubectl's current context. The job is restarted without
# limit after a lost node or exit code 75, and up to five times after other failures.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
shopt -u patsub_replacement 2>/dev/null || true

[ "$#" -gt 0 ] || usage
action="$1" && shift
case "$action" in
  apply | logs | delete) ;;
  *) usage_error "unknown action $action: choose apply, logs or delete." ;;
esac

name='' image='' bucket='' service_account=default tpu='' topology='' chips='' gpu='' hosts='' gpus='' args=()
for arg in "$@"; do
  case "$arg" in
    *[[:cntrl:]]*) usage_error "$arg contains a line break or another control character; remove it." ;;
    --dry-run) dry_run=true ;;
    --name=*) name="${arg#*=}" ;;
    --image=*) image="${arg#*=}" ;;
    --bucket=*) bucket="${arg#*=}" && bucket="${bucket#gs://}" ;;
    --service-account=*) service_account="${arg#*=}" ;;
    --tpu=*) tpu="${arg#*=}" ;;
    --topology=*) topology="${arg#*=}" ;;
    --chips-per-host=*) chips="${arg#*=}" && require_count --chips-per-host "$chips" ;;
    --gpu=*) gpu="${arg#*=}" ;;
    --hosts=*) hosts="${arg#*=}" && require_count --hosts "$hosts" ;;
    --gpus-per-host=*) gpus="${arg#*=}" && require_count --gpus-per-host "$gpus" ;;
    *) args+=("$arg") ;;
  esac
done
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || usage_error "--name=$name must consist of at most 40 lower-case" \
  "letters, digits and hyphens, start with a letter and not end with a hyphen, as in --name=isnet-ade20k."
"$dry_run" || [ -n "$(command -v kubectl)" ] ||
  usage_error "kubectl is not installed: see https://kubernetes.io/docs/tasks/tools."

json_string() {
  local text="$1"
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "$text"
}

# Replaces the placeholder @$1@ of the template by $2.
substitute() {
  manifest="${manifest//@$1@/$2}"
}

# Sets `hosts`, `selector` and `limits`, and for a TPU slice `annotations`.
select_hardware() {
  local number product=1
  annotations='{}'
  if [ -n "$tpu" ] && [ -z "$gpu$hosts$gpus" ]; then
    [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
      usage_error "--topology=$topology must give the chips along each axis, as in --topology=4x4."
    for number in ${topology//x/ }; do product=$((product * number)); done
    [ -n "$chips" ] || chips=$((product < 4 ? product : 4))
    [ $((product % chips)) -eq 0 ] || usage_error "the $product chips of --topology=$topology cannot be divided into" \
      "hosts of $chips: set --chips-per-host to the number of chips that each node has."
    hosts=$((product / chips))
    # one whole slice
    annotations='{"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}'
    selector="{\"cloud.google.com/gke-tpu-accelerator\": $(json_string "$tpu"),"
    selector="$selector \"cloud.google.com/gke-tpu-topology\": \"$topology\"}"
    limits="{\"google.com/tpu\": $chips}"
  elif [ -n "$gpu" ] && [ -n "$hosts" ] && [ -n "$gpus" ] && [ -z "$tpu$topology$chips" ]; then
    selector="{\"cloud.google.com/gke-accelerator\": $(json_string "$gpu")}"
    limits="{\"nvidia.com/gpu\": $gpus}"
  else
    usage_error "give the hardware: either --tpu and --topology, or --gpu, --hosts and --gpus-per-host."
  fi
}

# Sets `manifest`, the template filled in.
render_manifest() {
  local list='' separator='' dollar='$'
  [ -n "$image" ] || usage_error "the image is missing: build it from launch/Dockerfile, push it, and give" \
    "--image=IMAGE."
  [ -n "$bucket" ] || usage_error "the bucket is missing: a pod's disk does not outlive the pod, so runs/ must be in" \
    "a bucket, as in --bucket=my-runs."
  set_module_args ${args[@]+"${args[@]}"}
  require_copied_config
  select_hardware

  # Kubernetes expands $(NAME) in a command, and turns $$ into $.
  args=(python -m "${module_args[@]}")
  args=("${args[@]//$dollar/$dollar$dollar}")
  if [ -n "$gpu" ] || [ "$hosts" -eq 1 ]; then  # JAX discovers only the hosts of a TPU slice
    args+=("--coordinator=$name-hosts-0-0.$name:8476" "--num_processes=$hosts")
    args+=("--process_id=\$(JOB_COMPLETION_INDEX)")
  fi
  for arg in "${args[@]}"; do
    list="$list$separator$(json_string "$arg")"
    separator=', '
  done

  manifest="$(cat launch/gke_jobset.yaml)"
  substitute NAME "$name"
  substitute ANNOTATIONS "$annotations"
  substitute HOSTS "$hosts"
  substitute SERVICE_ACCOUNT "$(json_string "$service_account")"
  substitute NODE_SELECTOR "$selector"
  substitute IMAGE "$(json_string "$image")"
  substitute LIMITS "$limits"
  substitute BUCKET "$(json_string "$bucket")"
  substitute COMMAND "[$list]"
}

case "$action" in
  apply)
    render_manifest
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
