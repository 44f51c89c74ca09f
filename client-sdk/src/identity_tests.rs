use super::*;
use crate::test_ca::{DAY, TestCa};

#[test]
fn key_survives_the_disk_and_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    let key = NodeKey::load_or_create(&path).unwrap();
    assert_eq!(NodeKey::load_or_create(&path).unwrap().id(), key.id());
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no leftovers"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            NodeKey::load(&path),
            Err(IdentityError::Exposed { .. })
        ));
    }
}

#[test]
fn a_damaged_key_is_an_error_and_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    write_private(&path, b"rubbish").unwrap();
    assert!(matches!(
        NodeKey::load_or_create(&path),
        Err(IdentityError::Malformed { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"rubbish");
}

#[test]
fn a_write_that_fails_leaves_the_old_content() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no-such-dir").join("file");
    assert!(matches!(
        write_private(&missing, b"x"),
        Err(IdentityError::Io { .. })
    ));
    // A directory in the way: the rename fails, and the temporary file goes too.
    let blocked = dir.path().join("blocked");
    std::fs::create_dir(&blocked).unwrap();
    std::fs::write(blocked.join("inside"), b"old").unwrap();
    assert!(write_private(&blocked, b"x").is_err());
    assert_eq!(std::fs::read(blocked.join("inside")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn credentials_survive_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Credentials::load(dir.path()),
        Err(IdentityError::NotPaired { .. })
    ));
    let saved = TestCa::new().member(Role::Admin);
    saved.save(dir.path()).unwrap();
    let loaded = Credentials::load(dir.path()).unwrap();
    assert_eq!(loaded.node(), saved.node());
    assert_eq!(loaded.certificate, saved.certificate);
    assert_eq!((loaded.role, loaded.mesh), (Role::Admin, saved.mesh));
    assert_eq!(loaded.mesh_name, saved.mesh_name);
    // Another node's key beside the certificate is noticed at once.
    NodeKey::generate()
        .save(&dir.path().join("node.key"))
        .unwrap();
    assert!(matches!(
        Credentials::load(dir.path()),
        Err(IdentityError::Malformed { .. })
    ));
}

#[test]
fn members_are_told_from_strangers() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let member = ours.member(Role::Agent);
    let now = crate::clock::wall();
    let expected = Member {
        node: member.node(),
        role: Role::Agent,
    };
    assert_eq!(
        verify_member(&member.certificate, &ours.der, now),
        Ok(expected)
    );
    let stranger = verify_member(&member.certificate, &theirs.der, now);
    assert_eq!(stranger, Err(MemberError::OtherMesh));
    assert!(matches!(
        verify_member(b"x", &ours.der, now),
        Err(MemberError::Malformed(_))
    ));
}

#[test]
fn a_clock_off_by_a_day_is_tolerated_and_more_is_named() {
    let ca = TestCa::new();
    let key = NodeKey::generate();
    let now = crate::clock::wall();
    let at = |shift: i64| ca.issue(&key, Role::Agent, shift);
    for shift in [-DAY, 0, DAY] {
        assert!(
            verify_member(&at(shift), &ca.der, now).is_ok(),
            "issuer's clock {shift} s off"
        );
    }
    assert_eq!(
        verify_member(&at(2 * DAY), &ca.der, now),
        Err(MemberError::NotYetValid)
    );
    assert_eq!(
        verify_member(&at(-91 * DAY), &ca.der, now),
        Err(MemberError::Expired)
    );
}

#[test]
fn names_and_key_must_agree() {
    let ca = TestCa::new();
    let (key, other) = (NodeKey::generate(), NodeKey::generate());
    let now = crate::clock::wall();
    let check = |names: &[String]| verify_member(&ca.issue_names(&key, names, 0), &ca.der, now);
    let role = role_dns_name(Role::Client);
    let stolen = check(&[other.id().dns_name(), role.clone()]);
    assert_eq!(stolen, Err(MemberError::KeyMismatch { named: other.id() }));
    assert!(matches!(
        check(&[key.id().dns_name()]),
        Err(MemberError::Names(_))
    ));
    assert!(matches!(
        check(std::slice::from_ref(&role)),
        Err(MemberError::Names(_))
    ));
    let two = [key.id().dns_name(), role, role_dns_name(Role::Admin)];
    assert!(
        matches!(check(&two), Err(MemberError::Names(_))),
        "two roles"
    );
    let king = [key.id().dns_name(), format!("king.role.{DNS_SUFFIX}")];
    assert!(
        matches!(check(&king), Err(MemberError::Names(_))),
        "unknown role"
    );
}
