# A new bundle NAME in FOLDER, as a copy of deepspio under its own name: bash docs/site/new_bundle.sh NAME FOLDER
set -eu
name=$1 folder=$2
cp -r bundles/deepspio "$folder/$name"
mv "$folder/$name/deepspio" "$folder/$name/$name"
find "$folder/$name" -name __pycache__ -prune -exec rm -r {} +
grep -rlI --include='*.py' --include='*.json' -w deepspio "$folder/$name" | xargs sed -i "s/\bdeepspio\b/$name/g"
