package main

import (
	"path/filepath"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// boltLabels keeps labels for the local store in a file, each change synced before it is answered, in the form and by
// the settings of containerd's own metadata.
type boltLabels struct {
	db *bolt.DB
}

func newBoltLabels(root string) (*boltLabels, error) {
	db, err := openBolt(filepath.Join(root, "labels.db"))
	if err != nil {
		return nil, err
	}
	return &boltLabels{db}, nil
}

func openBolt(path string) (*bolt.DB, error) {
	options := *bolt.DefaultOptions
	options.NoFreelistSync = true // as containerd opens its own
	return bolt.Open(path, 0o644, &options)
}

func (b *boltLabels) Get(blob digest.Digest) (labels map[string]string, err error) {
	err = b.db.View(func(tx *bolt.Tx) error {
		if bucket := tx.Bucket([]byte(blob)); bucket != nil {
			labels, err = boltutil.ReadLabels(bucket)
		}
		return err
	})
	return labels, err
}

func (b *boltLabels) Set(blob digest.Digest, labels map[string]string) error {
	_, err := b.change(blob, func(map[string]string) map[string]string { return changed(nil, labels) })
	return err
}

func (b *boltLabels) Update(blob digest.Digest, labels map[string]string) (map[string]string, error) {
	return b.change(blob, func(known map[string]string) map[string]string { return changed(known, labels) })
}

func (b *boltLabels) change(
	blob digest.Digest, how func(map[string]string) map[string]string,
) (next map[string]string, err error) {
	err = b.db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte(blob))
		if err != nil {
			return err
		}
		known, err := boltutil.ReadLabels(bucket)
		if err != nil {
			return err
		}
		next = how(known)
		return boltutil.WriteLabels(bucket, next)
	})
	return next, err
}
