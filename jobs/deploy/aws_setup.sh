#!/usr/bin/env bash
# What cluster.yaml needs of an AWS account, once: two instance profiles and the id of a machine image.
#
#   bash jobs/deploy/aws_setup.sh BUCKET [BUCKET...]       the buckets of the images and of storage_path
#
# Needs the AWS CLI and rights to make IAM roles. Again is fine: what is there is kept, the rights are written anew.
# Whoever runs `ray up` needs EC2 rights, and iam:PassRole for raykd-head.
#
# raykd-worker may read and write the buckets. raykd-head may that too, start and end machines, and hand raykd-worker to
# them. (The role that Ray makes by itself, ray-autoscaler-v1, may write every bucket but hand no role to a worker.)
set -euo pipefail

[[ $# -gt 0 ]] || { echo "usage: bash jobs/deploy/aws_setup.sh BUCKET [BUCKET...]" >&2; exit 2; }
export AWS_REGION=${AWS_REGION:-us-west-2}  # as in cluster.yaml: an image belongs to a region
export AWS_DEFAULT_REGION=$AWS_REGION  # its name in version 1 of the CLI

trust='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'

arns=$(printf '"arn:aws:s3:::%s", ' "$@")
objects=$(printf '"arn:aws:s3:::%s/*", ' "$@")
storage='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": ['${arns%, }']},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
   "Resource": ['${objects%, }']}]}'

for name in raykd-worker raykd-head; do
  aws iam get-role --role-name "$name" > /dev/null 2>&1 ||
    aws iam create-role --role-name "$name" --assume-role-policy-document "$trust" > /dev/null
  aws iam put-role-policy --role-name "$name" --policy-name storage --policy-document "$storage"
  aws iam get-instance-profile --instance-profile-name "$name" > /dev/null 2>&1 ||
    aws iam create-instance-profile --instance-profile-name "$name" > /dev/null
  roles=$(aws iam get-instance-profile --instance-profile-name "$name" --query 'InstanceProfile.Roles' --output text)
  [[ $roles == *"$name"* ]] ||
    aws iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
done

worker=$(aws iam get-role --role-name raykd-worker --query Role.Arn --output text)
aws iam attach-role-policy --role-name raykd-head --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
aws iam put-role-policy --role-name raykd-head --policy-name workers --policy-document '{"Version": "2012-10-17",
  "Statement": [{"Effect": "Allow", "Action": "iam:PassRole", "Resource": "'"$worker"'"}]}'

image=$(aws ec2 describe-images --owners amazon --query 'reverse(sort_by(Images, &CreationDate))[0].ImageId' \
  --filters 'Name=name,Values=Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *' --output text)
[[ $image == ami-* ]] || { echo "no Deep Learning Base GPU AMI (Ubuntu 22.04) in $AWS_REGION" >&2; exit 1; }

echo "The profiles raykd-head and raykd-worker are there (IAM needs some seconds until EC2 knows them)."
echo "The newest Deep Learning Base GPU AMI of $AWS_REGION; its notes must say driver 580 or newer:"
aws ec2 describe-images --image-ids "$image" --query 'Images[0].[ImageId, Name, Description]' --output text
echo "Set it with:  sed -i 's/ami-SET-ME/$image/' cluster.yaml"
