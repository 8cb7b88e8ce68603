package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

// kmsWithin bounds one question to KMS with its repetitions.
const kmsWithin = 15 * time.Second

// kmsKey wraps with a symmetric key in AWS KMS, which never leaves it.
type kmsKey struct {
	client *kms.Client
	id     string
}

// OpenKMS makes a Wrapper of a KMS key: its id, ARN or alias. Credentials come from where AWS' programs find them; the
// region too, unless an ARN says it.
func OpenKMS(ctx context.Context, id string) (Wrapper, error) {
	var options []func(*config.LoadOptions) error
	if parsed, err := arn.Parse(id); err == nil {
		options = append(options, config.WithRegion(parsed.Region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("--kms-key-id: read AWS' settings: %w", err)
	}
	if cfg.Region == "" {
		return nil, errors.New("--kms-key-id: in which region is it? give the key's ARN, or set AWS_REGION")
	}
	return NewKMS(cfg, id), nil
}

// NewKMS makes a Wrapper of a KMS key as cfg says.
func NewKMS(cfg aws.Config, id string) Wrapper { return kmsKey{kms.NewFromConfig(cfg), id} }

func (k kmsKey) Name() string { return "kms:" + k.id }

// as is what KMS demands again to decrypt, and writes to CloudTrail.
func (kmsKey) as() map[string]string { return map[string]string{"purpose": wrapAs} }

func (k kmsKey) Wrap(ctx context.Context, secret [SecretLen]byte) (Wrapped, error) {
	ctx, cancel := context.WithTimeout(ctx, kmsWithin)
	defer cancel()
	out, err := k.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.id, Plaintext: secret[:], EncryptionContext: k.as()})
	if err != nil {
		return Wrapped{}, k.failed("encrypt", err)
	}
	return Wrapped{By: "kms:" + aws.ToString(out.KeyId), Text: out.CiphertextBlob}, nil
}

func (k kmsKey) Unwrap(ctx context.Context, w Wrapped) (secret [SecretLen]byte, err error) {
	if !strings.HasPrefix(w.By, "kms:") {
		return secret, fmt.Errorf("%s: %w", k.Name(), ErrOtherKey)
	}
	ctx, cancel := context.WithTimeout(ctx, kmsWithin)
	defer cancel()
	// With KeyId, KMS refuses what any other key of the account encrypted.
	out, err := k.client.Decrypt(ctx, &kms.DecryptInput{KeyId: &k.id, CiphertextBlob: w.Text, EncryptionContext: k.as()})
	if err != nil {
		return secret, k.failed("decrypt", err)
	}
	if len(out.Plaintext) != SecretLen {
		return secret, fmt.Errorf("%s: %w", k.Name(), ErrOtherKey)
	}
	return [SecretLen]byte(out.Plaintext), nil
}

func (k kmsKey) failed(what string, err error) error {
	var incorrect *types.IncorrectKeyException
	var invalid *types.InvalidCiphertextException
	var api smithy.APIError
	switch {
	case errors.As(err, &incorrect), errors.As(err, &invalid):
		return fmt.Errorf("%s: %w", k.Name(), ErrOtherKey)
	case errors.As(err, &api):
		switch api.ErrorCode() {
		case "ThrottlingException", "KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException", "ServiceUnavailable", "InternalFailure":
		default:
			if api.ErrorFault() != smithy.FaultServer {
				return fmt.Errorf("%s with the KMS key %s: %w; the role needs kms:Encrypt and kms:Decrypt on it, and the key must be enabled", what, k.id, err)
			}
		}
	}
	return fmt.Errorf("%s with the KMS key %s: %w: %w", what, k.id, ErrAway, err)
}
