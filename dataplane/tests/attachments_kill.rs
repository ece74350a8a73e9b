//! slipwayd is killed in the middle of its work, again and again: what it said stays true.

mod daemon;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use daemon::Daemon;
use dataplane::testing::Rng;
use slipway_api::client::{Client, ClientError};
use slipway_api::{Attachment, AttachmentSpec, ErrorCode};

const CLIENTS: u64 = 4;
const ROUNDS: u64 = 40;
/// Sandboxes of each client: more than there are addresses for all.
const OWNERS: u64 = 20;

/// What a client was told of a sandbox of its.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Attached(Box<Attachment>),
    Detached,
    /// It asked, and no answer came.
    Nothing,
}

type Book = BTreeMap<String, Told>;

/// Attaches and detaches at random until the daemon is gone.
async fn work(client: &Client, book: &mut Book, rng: &mut Rng, answers: &AtomicU64, who: u64) {
    loop {
        let owner = format!("c{who}-{}", rng.below(OWNERS));
        let told = match book.get(&owner) {
            Some(Told::Attached(_)) if rng.chance(1, 2) => {
                client.detach(&owner, "eth0").await.map(|()| Told::Detached)
            }
            _ => match client.attach(&owner, "eth0", &AttachmentSpec::default()).await {
                Ok((attachment, _)) => Ok(Told::Attached(Box::new(attachment))),
                Err(ClientError::Refused(full)) if full.code == ErrorCode::LimitReached => continue,
                Err(error) => Err(error),
            },
        };
        match told {
            Ok(told) => {
                if let Some(Told::Attached(before)) = book.get(&owner)
                    && let Told::Attached(now) = &told
                {
                    assert_eq!(now, before, "asking again is answered the same");
                }
                book.insert(owner, told);
                answers.fetch_add(1, SeqCst);
            }
            Err(ClientError::Refused(refusal)) => panic!("{owner}: {refusal:?}"),
            Err(_) => {
                book.insert(owner, Told::Nothing);
                return;
            }
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Every answer was true, and nobody shares anything.
fn judge(listed: &[Attachment], books: &[Book]) {
    let mut seen = BTreeSet::new();
    for attachment in listed {
        for address in &attachment.addresses {
            assert!(seen.insert(address.to_string()), "{address} is given twice");
        }
        assert!(seen.insert(attachment.mac.to_string()), "{} is given twice", attachment.mac);
        assert!(seen.insert(attachment.port.clone()), "{} is given twice", attachment.port);
    }
    let listed: BTreeMap<_, _> = listed.iter().map(|a| (a.owner.as_str(), a)).collect();
    for (owner, told) in books.iter().flatten() {
        match (told, listed.get(owner.as_str())) {
            (Told::Attached(told), Some(found)) => assert_eq!(**told, **found),
            (Told::Detached, None) | (Told::Nothing, _) => {}
            (told, found) => panic!("{owner} was told {told:?}, and there is {found:?}"),
        }
    }
    let asked = |owner: &&str| books.iter().any(|book| book.contains_key(*owner));
    assert!(listed.keys().all(asked), "nothing is there that nobody asked for");
}

#[test]
fn a_killed_daemon_gives_no_address_twice_and_forgets_no_pod() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[[networks]]\nranges = [\"10.0.0.0/26\", \"fd00::/64\"]\nhost_gateway = true\n";
    fs::write(folder.path().join("slipwayd.toml"), config).unwrap();
    let run_dir = folder.path().join("run");
    let client = Client::new(run_dir.join("slipwayd.sock"));
    let mut books: Vec<Book> = vec![Book::new(); CLIENTS as usize];
    let mut rng = Rng::seeded(7);
    for round in 0..ROUNDS {
        let daemon = Daemon::start(folder.path());
        let attachments = block_on(client.list_attachments(None)).unwrap().attachments;
        judge(&attachments, &books);
        let ports = block_on(client.list_ports()).unwrap().ports;
        let served: BTreeSet<_> = ports.into_iter().map(|port| port.spec.name).collect();
        let owned: BTreeSet<_> = attachments.iter().map(|a| a.port.clone()).collect();
        assert_eq!(served, owned, "each pod has its port");
        // From here on the books tell what is there.
        for (owner, told) in books.iter_mut().flatten() {
            if *told == Told::Nothing {
                let found = attachments.iter().find(|attachment| attachment.owner == *owner);
                *told = found.map_or(Told::Detached, |a| Told::Attached(Box::new(a.clone())));
            }
        }
        let answers = AtomicU64::new(0);
        let last = rng.below(80);
        thread::scope(|scope| {
            let clients: Vec<_> = books
                .iter_mut()
                .enumerate()
                .map(|(who, book)| {
                    let (mut rng, answers, client) = (rng.fork(), &answers, &client);
                    scope.spawn(move || block_on(work(client, book, &mut rng, answers, who as u64)))
                })
                .collect();
            while answers.load(SeqCst) < last && !clients.iter().all(|c| c.is_finished()) {
                thread::sleep(Duration::from_millis(1));
            }
            drop(daemon);
        });
        assert!(answers.load(SeqCst) >= last, "round {round}");
    }
    let daemon = Daemon::start(folder.path());
    let attachments = block_on(client.list_attachments(None)).unwrap().attachments;
    judge(&attachments, &books);
    assert!(attachments.len() > 10, "the test did something: {}", attachments.len());
    for attachment in &attachments {
        block_on(client.detach(&attachment.owner, &attachment.interface)).unwrap();
    }
    assert_eq!(block_on(client.list_networks()).unwrap().networks[0].used, 0);
    assert_eq!(block_on(client.list_ports()).unwrap().ports, []);
    let left: Vec<PathBuf> = ["attachments", "vm", "ports"]
        .iter()
        .flat_map(|name| fs::read_dir(run_dir.join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, [""; 0].map(PathBuf::from), "nothing was damaged, nothing is left");
    drop(daemon);
}
